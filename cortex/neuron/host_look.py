"""What a neuron's host is made of, for `cortex doctor`: compiler, kernel cache, GPUs. Facts only.

NVML and torch may hang for ever, so that they are asked in a child process (`tell`), which writes a
line of JSON when one has answered, NVML first: what it said is known where torch says nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cortex.engine.kernels.native import build
from cortex.neuron.devices import ProbeFailed, pin_device_order
from cortex.neuron.nvml_probe import load_nvml

Json = dict[str, Any]

MIB = 1 << 20


def compiler(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The C compiler that would make kernels, else why there is none."""
    try:
        return build.compiler_of(environ)[0], ""
    except build.BuildError as error:
        return None, str(error)


def kernel_cache(environ: Mapping[str, str]) -> Path:
    """Where compiled kernels are kept."""
    return build.cache_directory(environ)


def tell() -> None:
    """The child's side: write what there is to say, a line each."""
    pin_device_order(os.environ)
    print(json.dumps({"nvml": nvml_facts(load_nvml)}), flush=True)
    print(json.dumps({"torch": torch_facts()}), flush=True)


def nvml_facts(load: Callable[[], Any]) -> Json:
    """Driver and GPUs, or an ``error``; ``expected`` where there simply is no GPU."""
    try:
        nvml = load()
    except ProbeFailed as exc:
        return {"error": exc.reason, "expected": exc.expected}
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return {
            "driver": _text(_asked(nvml, nvml.nvmlSystemGetDriverVersion)),
            "cuda": _asked(nvml, nvml.nvmlSystemGetCudaDriverVersion),
            "gpus": [_gpu(nvml, handle) for handle in handles],
        }
    except nvml.NVMLError as exc:
        absent = getattr(exc, "value", None) == nvml.NVML_ERROR_LIBRARY_NOT_FOUND
        return {"error": str(exc), "expected": absent}


def _gpu(nvml: Any, handle: Any) -> Json:
    memory = _asked(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    users = _asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {
        "name": _text(_asked(nvml, lambda: nvml.nvmlDeviceGetName(handle))),
        "uuid": _text(_asked(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))),
        "total_mb": None if memory is None else memory.total // MIB,
        "free_mb": None if memory is None else memory.free // MIB,
        "users": [
            {
                "pid": user.pid,
                "mb": None if user.usedGpuMemory is None else user.usedGpuMemory // MIB,
            }
            for user in users
        ],
    }


def torch_facts() -> Json | None:
    """None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    count = torch.cuda.device_count() if torch.version.cuda else 0
    facts: Json = {"version": torch.__version__, "cuda": torch.version.cuda, "count": count}
    for index in range(count):
        try:
            torch.zeros(1, device=f"cuda:{index}").item()
        except RuntimeError as exc:
            facts["error"] = f"GPU {index}: {(str(exc).splitlines() or ['no reason'])[0][:200]}"
            break
    return facts


def _asked(nvml: Any, question: Callable[[], Any]) -> Any:
    """What NVML answers; None where this driver or device does not tell."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
