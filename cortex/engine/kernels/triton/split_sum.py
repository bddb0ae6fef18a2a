"""The end of a product that was cut along its inputs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.engine.kernels.triton.jit import jit

_TILE = 1024


@jit
def _split_sum(
    parts: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    elements: tl.tensor,
    rows: tl.tensor,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = i < elements
    total = tl.zeros((TILE,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * elements + i, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + i % rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=inside)


def split_sum(parts: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """*parts* ``(splits, tokens, rows)`` fp32 summed in order, plus *bias*, into *out*."""
    elements = out.numel()
    _split_sum[(triton.cdiv(elements, _TILE),)](
        parts,
        parts if bias is None else bias,
        out,
        elements,
        out.shape[-1],
        SPLITS=parts.shape[0],
        BIAS=bias is not None,
        TILE=_TILE,
        num_warps=4,
    )


def splits_for(programs: int, steps: int, multiprocessors: int) -> int:
    """In how many parts *steps* along the inputs are cut so that two programs run a processor.

    *programs* is how many there are with one part. Never so many that a part has under four steps.
    """
    wanted = 2 * multiprocessors // max(programs, 1)
    most = max(min(wanted, steps // 4, 16), 1)
    return 1 << (most.bit_length() - 1)
