"""Root-mean-square norms, one row a program, in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.engine.kernels.triton.jit import jit


@jit
def _normed(x: tl.tensor, weight: tl.tensor, size: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """*x* fp32, rounded to the dtype of *weight* before and after it is multiplied by it."""
    inverse = tl.math.rsqrt(tl.sum(x * x, 0) / size + eps)
    rounded = (x * inverse).to(weight.dtype).to(tl.float32)
    return (rounded * weight.to(tl.float32)).to(weight.dtype)


@jit
def _rms_norm(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * SIZE
    i = tl.arange(0, PAD)
    inside = i < SIZE
    row = tl.load(x + at + i, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + i, mask=inside, other=0.0)
    tl.store(out + at + i, _normed(row, scale, SIZE, eps), mask=inside)


@jit
def _add_rms_norm(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * SIZE
    i = tl.arange(0, PAD)
    inside = i < SIZE
    row = tl.load(x + at + i, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(delta + at + i, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + i, mask=inside, other=0.0)
    rounded = row.to(scale.dtype)
    tl.store(total + at + i, rounded, mask=inside)
    tl.store(out + at + i, _normed(rounded.to(tl.float32), scale, SIZE, eps), mask=inside)


def _warps(padded: int) -> int:
    return min(max(padded // 512, 1), 16)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``(tokens, hidden)``, contiguous: over the root of its mean square, times *weight*."""
    out = torch.empty_like(x)
    size = x.shape[-1]
    padded = triton.next_power_of_2(size)
    _rms_norm[(x.shape[0],)](x, weight, out, eps, SIZE=size, PAD=padded, num_warps=_warps(padded))
    return out


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + delta``, written over *x*, and its `rms_norm`."""
    out = torch.empty_like(x)
    size = x.shape[-1]
    padded = triton.next_power_of_2(size)
    _add_rms_norm[(x.shape[0],)](
        x, delta, weight, x, out, eps, SIZE=size, PAD=padded, num_warps=_warps(padded)
    )
    return x, out
