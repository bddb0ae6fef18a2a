"""What the installed torch can do with CUDA; devices as torch sees them, without NVML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from cortex.neuron.devices import Inventory, ProbeFailed
from cortex.wire import neuron as wire

MIB = 1 << 20


@attrs.frozen
class TorchBuild:
    """The CUDA version torch was built for (None: a CPU build) and its machine code's targets."""

    cuda: str | None
    architectures: tuple[str, ...] = ()  # sm_90, compute_90

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether some kernel in the build runs on compute capability *major*.*minor*.

        Machine code runs on its own major version from its minor on, PTX on all later devices.
        """
        for name in self.architectures:
            kind, _, digits = name.partition("_")
            number = "".join(c for c in digits if c.isdigit())
            if len(number) < 2:
                continue
            built = (int(number[:-1]), int(number[-1]))
            if kind == "sm" and built[0] == major and built[1] <= minor:
                return True
            if kind == "compute" and built <= (major, minor):
                return True
        return not self.architectures


def torch_build() -> TorchBuild:
    """Of the installed torch; without one, a build without CUDA. Does not start CUDA."""
    try:
        import torch
    except ImportError:
        return TorchBuild(None)
    cuda = torch.version.cuda
    if cuda is None:
        return TorchBuild(None)
    # get_arch_list answers nothing without a visible device; the flags are compiled in.
    flags: str = getattr(torch._C, "_cuda_getArchFlags", lambda: "")() or ""
    return TorchBuild(cuda, tuple(flags.split()))


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise ProbeFailed("torch is not installed", expected=True) from exc
    return torch


@attrs.define(eq=False)
class TorchProbe:
    """A `DeviceProbe` for CUDA hosts without NVML."""

    _load: Callable[[], Any] = _torch
    _count: int = attrs.field(default=0, init=False)

    def inventory(self) -> Inventory:
        torch = self._load()
        if not torch.cuda.is_available():
            raise ProbeFailed("torch finds no CUDA device", expected=True)
        self._count = torch.cuda.device_count()
        devices: list[wire.Device] = []
        for index in range(self._count):
            facts = torch.cuda.get_device_properties(index)
            devices.append(
                wire.Device(
                    index=index,
                    name=facts.name,
                    vram_total_mb=facts.total_memory // MIB,
                    compute_capability=f"{facts.major}.{facts.minor}",
                )
            )
        return Inventory(tuple(devices), cuda_version=torch.version.cuda)

    def health(self) -> tuple[wire.DeviceHealth, ...]:
        torch = self._load()
        return tuple(self._health(torch, index) for index in range(self._count))

    def _health(self, torch: Any, index: int) -> wire.DeviceHealth:
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as exc:  # CUDA's errors; a faulted context answers nothing else
            return wire.DeviceHealth(index=index, ok=False, reason=_first_line(exc))
        return wire.DeviceHealth(
            index=index, vram_used_mb=(total - free) // MIB, vram_free_mb=free // MIB
        )


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
