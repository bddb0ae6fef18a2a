"""Which devices a host has, through every source."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from fakes.nvml import GIB, FakeGpu, FakeNvml

from cortex.neuron import devices
from cortex.neuron.cpu_probe import CpuProbe, usable_cores
from cortex.neuron.devices import Inventory, ProbeFailed
from cortex.neuron.nvml_probe import NvmlProbe
from cortex.neuron.torch_probe import TorchBuild, TorchProbe
from cortex.wire import neuron as wire
from cortex.wire.converter import structure, unstructure

CUDA = TorchBuild("13.0", ("sm_80", "sm_90", "sm_100", "compute_100"))


def probe(nvml: FakeNvml, build: TorchBuild = CUDA, **environ: str) -> NvmlProbe:
    return NvmlProbe(environ, lambda: nvml, lambda: build)


def two() -> FakeNvml:
    return FakeNvml([FakeGpu("GPU-aa11", "NVIDIA H200"), FakeGpu("GPU-bb22", total=24 * GIB)])


def cpu_only() -> CpuProbe:
    return CpuProbe()


# NVML


def test_gpus_are_listed_with_what_the_driver_tells() -> None:
    inventory = probe(two()).inventory()
    assert inventory == Inventory(
        (
            wire.Device(0, "NVIDIA H200", "cuda", 141 * 1024, "9.0"),
            wire.Device(1, "NVIDIA H200", "cuda", 24 * 1024, "9.0"),
        ),
        cuda_version="13.0",
        driver_version="580.65.06",
    )


@pytest.mark.parametrize(
    ("setting", "totals"),
    [
        ("1", [24]),
        ("1,0", [24, 141]),
        ("GPU-bb", [24]),
        (" 0 , 1 ", [141, 24]),
        ("0,7,1", [141]),  # as CUDA does: an unknown entry ends the list
        ("0,0", [141]),
    ],
)
def test_only_visible_gpus_are_listed_in_the_order_cuda_numbers_them(
    setting: str, totals: list[int]
) -> None:
    found = probe(two(), CUDA_VISIBLE_DEVICES=setting).inventory().devices
    assert [device.index for device in found] == list(range(len(totals)))
    assert [(device.vram_total_mb or 0) // 1024 for device in found] == totals


@pytest.mark.parametrize("setting", ["", "-1", "NoDevFiles", "MIG-123"])
def test_hidden_gpus_are_no_devices_and_no_problem(setting: str) -> None:
    with pytest.raises(ProbeFailed) as caught:
        probe(two(), CUDA_VISIBLE_DEVICES=setting).inventory()
    assert caught.value.expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [(12, True), (9, False), (18, False), (999, False)],
)
def test_an_nvml_that_does_not_start_gives_a_reason(code: int, expected: bool) -> None:
    with pytest.raises(ProbeFailed) as caught:
        probe(FakeNvml(init_error=code)).inventory()
    assert caught.value.expected is expected


def test_a_driver_mismatch_ends_on_the_cpu_with_the_reason() -> None:
    broken = probe(FakeNvml(init_error=18))
    chosen, inventory = devices.find((broken, _no_torch(), cpu_only()))
    assert isinstance(chosen, CpuProbe)
    assert [device.kind for device in inventory.devices] == ["cpu"]
    assert inventory.cuda_unavailable_reason is not None
    assert "versions differ" in inventory.cuda_unavailable_reason


def test_a_host_without_gpus_has_nothing_to_report() -> None:
    absent = probe(FakeNvml(init_error=12))
    _, inventory = devices.find((absent, _no_torch(), cpu_only()))
    assert inventory.cuda_unavailable_reason is None
    (device,) = inventory.devices
    assert (device.index, device.kind) == (0, "cpu")
    assert device.name
    assert device.vram_total_mb is not None
    assert device.vram_total_mb > 100


def test_a_torch_without_cuda_says_so() -> None:
    _, inventory = devices.find((probe(two(), TorchBuild(None)), _no_torch(), cpu_only()))
    assert inventory.cuda_unavailable_reason == "the installed torch is built without CUDA"


def test_a_gpu_torch_has_no_kernels_for_is_told() -> None:
    old = FakeNvml([FakeGpu("GPU-aa11", "Tesla P4", capability=(6, 1))])
    inventory = probe(old).inventory()
    assert inventory.cuda_unavailable_reason is not None
    assert "Tesla P4" in inventory.cuda_unavailable_reason


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((8, 0), True), ((8, 9), True), ((9, 0), True), ((7, 5), False), ((12, 0), True)],
)
def test_which_devices_a_build_runs_on(capability: tuple[int, int], runs: bool) -> None:
    assert CUDA.runs_on(*capability) is runs


def test_what_a_driver_does_not_tell_is_left_out() -> None:
    nvml = two()
    nvml.unsupported = {
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetName",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetCudaDriverVersion",
    }
    inventory = probe(nvml).inventory()
    assert inventory.devices[0] == wire.Device(0, "GPU", "cuda", None, None)
    assert (inventory.cuda_version, inventory.driver_version) == (None, None)


def test_a_count_that_fails_is_a_reason() -> None:
    nvml = two()
    nvml.unsupported = {"nvmlDeviceGetCount"}
    with pytest.raises(ProbeFailed):
        probe(nvml).inventory()


def test_health_of_each_gpu() -> None:
    source = probe(two(), CUDA_VISIBLE_DEVICES="1")
    source.inventory()
    assert source.health() == (wire.DeviceHealth(0, 1024, 23 * 1024, 7, 41),)


@pytest.mark.parametrize(("code", "ok"), [(15, False), (16, False), (28, False), (999, True)])
def test_a_lost_gpu_is_not_well(code: int, ok: bool) -> None:
    nvml = two()
    source = probe(nvml)
    source.inventory()
    nvml.gpus[1].error = code
    first, second = source.health()
    assert first.ok
    assert (second.ok, second.vram_free_mb) == (ok, None)
    assert second.reason


def test_a_gpu_that_has_disappeared_is_not_well() -> None:
    nvml = two()
    source = probe(nvml)
    source.inventory()
    del nvml.gpus[0]
    first, second = source.health()
    assert (first.ok, second.ok) == (False, True)


def test_readings_a_gpu_does_not_have_are_left_out() -> None:
    nvml = two()
    nvml.unsupported = {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature"}
    source = probe(nvml)
    source.inventory()
    assert source.health()[0] == wire.DeviceHealth(0, 1024, 140 * 1024)


def test_nvmls_own_trouble_is_not_the_devices() -> None:
    nvml = two()
    source = probe(nvml)
    source.inventory()
    nvml.init_error = 999
    assert all(device.ok and device.reason for device in source.health())


# torch


@attrs.define
class _Cuda:
    count: int = 1
    broken: bool = False

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="Orin", total_memory=8 * GIB, major=8, minor=7)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
        return 6 * GIB, 8 * GIB


def _torch_probe(cuda: _Cuda) -> TorchProbe:
    return TorchProbe(lambda: SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0")))


def _no_torch() -> TorchProbe:
    return _torch_probe(_Cuda(count=0))


def test_without_nvml_torch_tells() -> None:
    absent = probe(FakeNvml(init_error=12))
    source = _torch_probe(_Cuda())
    chosen, inventory = devices.find((absent, source, cpu_only()))
    assert chosen is source
    assert inventory.devices == (wire.Device(0, "Orin", "cuda", 8192, "8.7"),)
    assert source.health() == (wire.DeviceHealth(0, 2048, 6144),)


def test_a_context_that_is_broken_is_not_well() -> None:
    cuda = _Cuda()
    source = _torch_probe(cuda)
    source.inventory()
    cuda.broken = True
    (device,) = source.health()
    assert not device.ok
    assert device.reason == "CUDA error: an illegal memory access was encountered"


# The CPU


def _root(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


MEMINFO = "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\nHugePages: 0\n"


def test_the_cpu_is_one_device_with_its_ram(tmp_path: Path) -> None:
    root = _root(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__cpuinfo="processor\t: 0\nmodel name\t: Fast CPU\nmodel name\t: Other\n",
        proc__self__status="Name:\tx\nVmRSS:\t  2048 kB\n",
    )
    source = CpuProbe(root)
    assert source.inventory() == Inventory((wire.Device(0, "Fast CPU", "cpu", 8192),))
    assert source.health() == (wire.DeviceHealth(0, 2, 4096),)


def test_a_cgroups_limit_is_the_ram_there_is(tmp_path: Path) -> None:
    root = _root(tmp_path, proc__meminfo=MEMINFO)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    source = CpuProbe(root)
    assert source.inventory().devices[0].vram_total_mb == 2048
    assert source.health()[0].vram_free_mb == 1024
    (group / "memory.max").write_text("max\n")
    assert source.health()[0].vram_free_mb == 4096


def test_unreadable_figures_are_unknown_not_zero(tmp_path: Path) -> None:
    assert CpuProbe(tmp_path).health() == (wire.DeviceHealth(0),)


def test_cores_count_neither_siblings_nor_what_the_quota_forbids(tmp_path: Path) -> None:
    import os

    cpus = sorted(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == len(cpus)
    for cpu in cpus:
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-999\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1  # never less


# The answer


def test_discovery_survives_the_wire() -> None:
    _, inventory = devices.find((cpu_only(),))
    answer = devices.discovery(inventory, version="1", architectures=("qwen3",))
    assert answer.hostname
    assert answer.kernel
    plain = unstructure(answer)
    plain["devices"] = list(plain["devices"])
    assert structure(_lists(plain), wire.Discovery) == answer


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return value


def test_cuda_numbers_gpus_as_nvml_does_unless_told_otherwise() -> None:
    environ: dict[str, str] = {}
    devices.pin_device_order(environ)
    assert environ == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environ["CUDA_DEVICE_ORDER"] = "FASTEST_FIRST"
    devices.pin_device_order(environ)
    assert environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_the_systems_own_probes_find_something() -> None:
    _, inventory = devices.find(devices.system_probes())
    assert inventory.devices
