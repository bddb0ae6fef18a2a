"""Norm and rotary of the heads and the write into the paged cache, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.engine.kernels.triton.jit import jit

_ELEMENTS = 1024  # of each half of the heads that one program handles


@jit
def _place(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    slots: tl.tensor,
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HEADS_TILE: tl.constexpr,
    NORM: tl.constexpr,
) -> None:
    """HEADS_TILE heads of one token, each as its two halves. A negative slot is not written."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE)
    i = tl.arange(0, HALF_PADDED)
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (i < HALF)[None, :]
    DIM: tl.constexpr = 2 * HALF
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM + i[None, :]
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + HALF, mask=inside, other=0.0)
    dtype = low.dtype
    is_query = (head < HEADS)[:, None]
    is_value = (head >= HEADS + KV_HEADS)[:, None]

    turned_low = low.to(tl.float32)
    turned_high = high.to(tl.float32)
    if NORM:
        square = tl.sum(turned_low * turned_low, 1) + tl.sum(turned_high * turned_high, 1)
        inverse = tl.math.rsqrt(square / DIM + eps)[:, None]
        at = i < HALF
        low_weight = tl.where(
            is_query,
            tl.load(q_norm + i, mask=at, other=0.0)[None, :],
            tl.load(k_norm + i, mask=at, other=0.0)[None, :],
        )
        high_weight = tl.where(
            is_query,
            tl.load(q_norm + HALF + i, mask=at, other=0.0)[None, :],
            tl.load(k_norm + HALF + i, mask=at, other=0.0)[None, :],
        )
        turned_low = (turned_low * inverse).to(dtype).to(tl.float32) * low_weight.to(tl.float32)
        turned_high = (turned_high * inverse).to(dtype).to(tl.float32) * high_weight.to(tl.float32)
        turned_low = turned_low.to(dtype).to(tl.float32)
        turned_high = turned_high.to(dtype).to(tl.float32)
    c = tl.load(cos + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    s = tl.load(sin + token * HALF + i, mask=i < HALF, other=0.0)[None, :]
    first = tl.where(is_value, low, (turned_low * c - turned_high * s).to(dtype))
    second = tl.where(is_value, high, (turned_high * c + turned_low * s).to(dtype))

    target = q + (token * HEADS + head)[:, None] * DIM + i[None, :]
    tl.store(target, first, mask=inside & is_query)
    tl.store(target + HALF, second, mask=inside & is_query)
    slot = tl.load(slots + token)
    if slot >= 0:
        is_key = (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
        target = keys + (slot * KV_HEADS + head - HEADS)[:, None] * DIM + i[None, :]
        tl.store(target, first, mask=inside & is_key)
        tl.store(target + HALF, second, mask=inside & is_key)
        target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * DIM + i[None, :]
        tl.store(target, first, mask=inside & is_value)
        tl.store(target + HALF, second, mask=inside & is_value)


def place(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """`Ops.place` on contiguous tensors; a row whose slot is negative is left out of the cache."""
    tokens = qkv.shape[0]
    kv_heads, dim = keys.shape[2:]
    heads = qkv.shape[1] // dim - 2 * kv_heads
    q = qkv.new_empty(tokens, heads, dim)
    padded = triton.next_power_of_2(dim // 2)
    tile = max(min(_ELEMENTS // padded, triton.next_power_of_2(heads + 2 * kv_heads)), 1)
    q_norm, k_norm = (qkv, qkv) if norms is None else norms
    _place[(tokens, -(-(heads + 2 * kv_heads) // tile))](
        qkv,
        q_norm,
        k_norm,
        cos,
        sin,
        slots,
        q,
        keys,
        values,
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        HALF_PADDED=padded,
        HEADS_TILE=tile,
        NORM=norms is not None,
        num_warps=4,
    )
    return q
