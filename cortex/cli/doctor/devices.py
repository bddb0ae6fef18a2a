"""The devices of a neuron's host: driver and torch, compiler, memory. Judged from what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cortex.cli.doctor.report import Finding, Judge
from cortex.neuron import host_look
from cortex.neuron.devices import visible

Json = dict[str, Any]

LITTLE_FREE = 0.5  # of a device's memory: with less of it free somebody else uses the device
MIB = 1 << 20


def driver_and_torch(judge: Judge, seen: Json, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether torch can use the GPUs that the driver shows."""
    nvml: Json = seen.get("nvml") or {}
    torch: Json | None = seen.get("torch")
    gpus = nvml.get("gpus") or []
    chosen = visible(environ, [gpu["uuid"] or "" for gpu in gpus])
    if nvml.get("error") and not nvml.get("expected"):
        yield judge.failed("driver", nvml["error"], "reload the NVIDIA driver, or reboot")
    elif gpus:
        yield judge.ok("driver", f"{nvml.get('driver')}, {len(gpus)} GPU: {_names(gpus)}")
        if not chosen:
            yield judge.warning(
                "driver", "CUDA_VISIBLE_DEVICES hides every GPU: the CPU serves", "unset it"
            )
    if seen.get("error"):
        yield judge.failed(
            "torch", seen["error"], "see dmesg: a device or its driver hangs, or torch is broken"
        )
        return
    if torch is None:
        yield judge.failed("torch", "is not installed", "use the cpu or cuda flavour of cortex.pyz")
        return
    yield _torch(judge, nvml, torch, chosen)


def _torch(judge: Judge, nvml: Json, torch: Json, chosen: list[int]) -> Finding:
    name = f"{torch['version']}"
    if not chosen:
        return judge.ok("torch", f"{name}; there is no GPU for it: models run on the CPU")
    if torch["cuda"] is None:
        return judge.failed(
            "torch", f"{name} is built without CUDA, and there are GPUs", "use the cuda flavour"
        )
    has, wants = _version(nvml.get("cuda")), str(torch["cuda"])
    if has is not None and int(wants.partition(".")[0]) > int(has.partition(".")[0]):
        return judge.failed(
            "torch",
            f"{name} is for CUDA {wants}, the driver {nvml.get('driver')} has CUDA {has}",
            "update the NVIDIA driver, or use a build for an older CUDA",
        )
    if torch.get("error"):
        return judge.failed("torch", torch["error"], "reset the GPU, or look at dmesg for its Xid")
    if torch["count"] != len(chosen):
        return judge.failed(
            "torch",
            f"{name} sees {torch['count']} GPU, the driver shows {len(chosen)}",
            "look at the rights of /dev/nvidia*, and at the unit's DeviceAllow=",
        )
    return judge.ok("torch", f"{name}, CUDA {wants}, computes on {torch['count']} GPU")


def memory(judge: Judge, seen: Json, environ: Mapping[str, str], meminfo: str) -> Iterator[Finding]:
    """What is free on each device, and who has the rest. *meminfo* is /proc/meminfo's text."""
    gpus = (seen.get("nvml") or {}).get("gpus") or []
    chosen = visible(environ, [gpu["uuid"] or "" for gpu in gpus])
    for index, position in enumerate(chosen):
        yield _gpu_memory(judge, index, gpus[position])
    if not chosen:
        kib = {
            line.partition(":")[0]: int(line.split()[1])
            for line in meminfo.splitlines()
            if line.endswith("kB")
        }
        total, free = kib.get("MemTotal", 0) // 1024, kib.get("MemAvailable", 0) // 1024
        if total:
            yield judge.ok("memory cpu", f"{free} of {total} MiB available")


def _gpu_memory(judge: Judge, index: int, gpu: Json) -> Finding:
    check, total, free = f"memory GPU {index}", gpu["total_mb"], gpu["free_mb"]
    if total is None or free is None:
        return judge.warning(check, f"{gpu['name']} does not tell its memory", "see nvidia-smi")
    users = ", ".join(
        f"pid {user['pid']}" + ("" if user["mb"] is None else f" {user['mb']} MiB")
        for user in gpu["users"]
    )
    detail = f"{free} of {total} MiB free" + (f"; in use by {users}" if users else "")
    if free < total * LITTLE_FREE and not gpu["users"]:
        return judge.warning(
            check, f"{detail}; nobody can be seen who uses it", "a process of another container?"
        )
    return judge.ok(check, detail)


def compiler(judge: Judge, environ: Mapping[str, str]) -> Finding:
    """Without one torch's own operations serve, slower."""
    found, why = host_look.compiler(environ)
    if found is not None:
        return judge.ok("compiler", found)
    return judge.warning(
        "compiler", f"{why}: cortex's kernels are not used", "install gcc, or set CC"
    )


def _names(gpus: list[Json]) -> str:
    return ", ".join(str(gpu["name"]) for gpu in gpus)


def _version(number: int | None) -> str | None:
    """NVML's 12040 as 12.4."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
