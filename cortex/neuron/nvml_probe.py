"""NVIDIA GPUs through NVML. Every NVML call may fail with any of its errors; none leaves here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from cortex.neuron.devices import Inventory, ProbeFailed, visible
from cortex.neuron.torch_probe import TorchBuild, torch_build
from cortex.wire import neuron as wire

MIB = 1 << 20
T = TypeVar("T")

# A device that answers with one of these is gone for this process, whatever it was doing.
_LOST = (
    "NVML_ERROR_GPU_IS_LOST",
    "NVML_ERROR_RESET_REQUIRED",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_GPU_NOT_FOUND",
)


def load_nvml() -> Any:
    """NVIDIA's own bindings. Raises `ProbeFailed`."""
    try:
        import pynvml
    except ImportError as exc:
        raise ProbeFailed("nvidia-ml-py is not installed", expected=True) from exc
    return pynvml


@attrs.define(eq=False)
class NvmlProbe:
    """A `DeviceProbe`; *load* gives the NVML bindings, *build* what torch can do with CUDA."""

    _environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    _load: Callable[[], Any] = load_nvml
    _build: Callable[[], TorchBuild] = torch_build
    _nvml: Any = attrs.field(default=None, init=False)
    _uuids: tuple[str, ...] = attrs.field(default=(), init=False)

    def inventory(self) -> Inventory:
        self._start()
        build = self._build()
        nvml = self._nvml
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except nvml.NVMLError as exc:
            raise ProbeFailed(f"NVML cannot list the GPUs: {exc}") from exc
        if not handles:
            raise ProbeFailed("NVML lists no GPU", expected=True)
        chosen = visible(self._environ, uuids)
        if not chosen:
            raise ProbeFailed("CUDA_VISIBLE_DEVICES hides every GPU", expected=True)
        if build.cuda is None:
            raise ProbeFailed("the installed torch is built without CUDA")
        self._uuids = tuple(uuids[position] for position in chosen)
        devices = tuple(
            self._device(index, handles[position]) for index, position in enumerate(chosen)
        )
        return Inventory(
            devices,
            cuda_version=self._cuda_version(),
            driver_version=self._ask(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            cuda_unavailable_reason=_wrong_build(build, devices),
        )

    def health(self) -> tuple[wire.DeviceHealth, ...]:
        try:
            self._start()
        except ProbeFailed as exc:  # NVML's trouble is not the device's, which may work on
            return tuple(
                wire.DeviceHealth(index=index, reason=exc.reason)
                for index in range(len(self._uuids))
            )
        return tuple(self._health(index, uuid) for index, uuid in enumerate(self._uuids))

    def _start(self) -> None:
        """Initialise NVML; doing so again is cheap and survives a driver that was reloaded."""
        if self._nvml is None:
            self._nvml = self._load()
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            if _is(nvml, exc, "NVML_ERROR_LIB_RM_VERSION_MISMATCH"):
                raise ProbeFailed(
                    "NVIDIA driver and library versions differ; reload the driver or reboot"
                ) from exc
            absent = _is(nvml, exc, "NVML_ERROR_LIBRARY_NOT_FOUND")
            raise ProbeFailed(f"NVML does not start: {exc}", expected=absent) from exc

    def _device(self, index: int, handle: Any) -> wire.Device:
        nvml = self._nvml
        memory = self._ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
        capability = self._ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        return wire.Device(
            index=index,
            name=self._ask(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "GPU",
            vram_total_mb=None if memory is None else memory // MIB,
            compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        )

    def _health(self, index: int, uuid: str) -> wire.DeviceHealth:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as exc:
            lost = _is(nvml, exc, *_LOST)
            return wire.DeviceHealth(index=index, ok=not lost, reason=str(exc))
        return wire.DeviceHealth(
            index=index,
            vram_used_mb=memory.used // MIB,
            vram_free_mb=memory.free // MIB,
            utilization_pct=self._ask(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            temp_c=self._ask(
                lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
        )

    def _cuda_version(self) -> str | None:
        number = self._ask(lambda: int(self._nvml.nvmlSystemGetCudaDriverVersion()))
        return None if number is None else f"{number // 1000}.{number % 1000 // 10}"

    def _ask(self, question: Callable[[], T]) -> T | None:
        """What NVML answers; None where this driver or device does not tell."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def _is(nvml: Any, exc: Any, *names: str) -> bool:
    value = getattr(exc, "value", None)
    return any(value == getattr(nvml, name, object()) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _wrong_build(build: TorchBuild, devices: tuple[wire.Device, ...]) -> str | None:
    """Why torch's kernels do not run on one of *devices*; None when all is well."""
    for device in devices:
        if device.compute_capability is None:
            continue
        major, minor = (int(part) for part in device.compute_capability.split("."))
        if not build.runs_on(major, minor):
            return (
                f"the installed torch has no kernels for {device.name}"
                f" (compute capability {device.compute_capability})"
            )
    return None
