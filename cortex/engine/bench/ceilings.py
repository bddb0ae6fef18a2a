"""What a device can do at most, measured: bytes moved and multiplications made."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import attrs
import torch

CUDA_COPY, CPU_COPY = 4 << 30, 256 << 20  # bytes; many times the last cache
CUDA_SIDE, CPU_SIDE = 8192, 1024  # of the square matrices
REPEATS = 10


@attrs.frozen
class Ceilings:
    """``bandwidth`` in bytes a second, read and written ones both counted; ``matmul`` in
    floating-point operations a second, in the compute dtype."""

    bandwidth: float
    matmul: float


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of *work* on *device*, the host's part included."""
    times: list[float] = []
    for _ in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """By one large copy within the device, and one product of square random matrices."""
    on_cuda = device.type == "cuda"
    return Ceilings(
        _copied(CUDA_COPY if on_cuda else CPU_COPY, device),
        _multiplied(CUDA_SIDE if on_cuda else CPU_SIDE, device, dtype),
    )


def _copied(size: int, device: torch.device) -> float:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, REPEATS)


def _multiplied(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    out = torch.empty_like(left)
    seconds = median_seconds(lambda: torch.mm(left, right, out=out), device, REPEATS)
    return 2 * side**3 / seconds
