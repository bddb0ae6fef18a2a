"""NVML bindings for a host that exists in a test only."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs

GIB = 1 << 30


class NVMLError(Exception):
    """Like pynvml's: ``value`` is the code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@attrs.define(eq=False)
class FakeGpu:
    uuid: str
    name: str = "NVIDIA H200"
    total: int = 141 * GIB
    used: int = GIB
    capability: tuple[int, int] = (9, 0)
    utilization: int = 7
    temperature: int = 41
    users: dict[int, int | None] = attrs.field(factory=dict)  # pid to bytes, None: not told
    error: int | None = None  # what its memory and handle answer with


@attrs.define(eq=False, slots=False)
class FakeNvml:
    """The part of ``pynvml`` that is used, with pynvml's names, codes and kinds of values.

    ``unsupported`` are names of functions this driver does not have.
    """

    gpus: list[FakeGpu] = attrs.field(factory=list)
    init_error: int | None = None
    unsupported: set[str] = attrs.field(factory=set)

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_ERROR_GPU_NOT_FOUND = 28
    NVML_ERROR_UNKNOWN = 999
    NVML_TEMPERATURE_GPU = 0

    def _supported(self, name: str) -> None:
        if name in self.unsupported:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:
        self._supported("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError(self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> bytes:
        self._supported("nvmlDeviceGetName")
        return gpu.name.encode()

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:
        self._supported("nvmlDeviceGetMemoryInfo")
        if gpu.error is not None:
            raise NVMLError(gpu.error)
        return SimpleNamespace(total=gpu.total, used=gpu.used, free=gpu.total - gpu.used)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[Any]:
        self._supported("nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.users.items()]

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        self._supported("nvmlDeviceGetCudaComputeCapability")
        return gpu.capability

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> Any:
        self._supported("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=gpu.utilization, memory=0)

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:
        self._supported("nvmlDeviceGetTemperature")
        return gpu.temperature

    def nvmlSystemGetDriverVersion(self) -> str:
        self._supported("nvmlSystemGetDriverVersion")
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        self._supported("nvmlSystemGetCudaDriverVersion")
        return 13000


@attrs.define(eq=False)
class FakeProbe:
    """A `DeviceProbe` that answers with what it is given; ``before`` runs before each reading."""

    readings: list[Any]
    before: Callable[[], None] = lambda: None
    count: int = 0

    def inventory(self) -> Any:
        raise NotImplementedError("it has readings only")

    def health(self) -> Any:
        self.before()
        reading = self.readings[min(self.count, len(self.readings) - 1)]
        self.count += 1
        return reading
