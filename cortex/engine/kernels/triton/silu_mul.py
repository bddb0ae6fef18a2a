"""The gate of a gated MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.engine.kernels.triton.jit import jit

_TILE = 1024


@jit
def _silu_mul(both: tl.tensor, out: tl.tensor, INNER: tl.constexpr, TILE: tl.constexpr) -> None:
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < INNER
    gate = tl.load(both + token * 2 * INNER + i, mask=inside, other=0.0)
    up = tl.load(both + token * 2 * INNER + INNER + i, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    opened = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + token * INNER + i, (opened * up.to(tl.float32)).to(gate.dtype), mask=inside)


def silu_mul(both: torch.Tensor) -> torch.Tensor:
    """``(tokens, 2 inner)``, contiguous: silu of the first half, rounded, times the second."""
    tokens, inner = both.shape[0], both.shape[1] // 2
    out = both.new_empty(tokens, inner)
    _silu_mul[(tokens, triton.cdiv(inner, _TILE))](both, out, INNER=inner, TILE=_TILE, num_warps=4)
    return out
