"""Products of one and of a few rows with weights in 16 bits or in FP8 (e4m3), row-major.

An FP8 weight comes as bytes and is decoded by shifts, which every GPU can do: e4m3 in the place of
an fp16's upper bits is that number divided by 2**8.
"""

from __future__ import annotations

import triton.language as tl

from cortex.engine.kernels.triton.jit import jit

FP8_BLOCK = 128  # rows and inputs that share a scale
_BLOCK = tl.constexpr(FP8_BLOCK)


@jit
def _e4m3(byte: tl.tensor) -> tl.tensor:
    """Bytes to fp32. The pattern of NaN reads as 480: weights have none."""
    wide = byte.to(tl.int16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@jit
def dense_gemv(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    scale_stride: tl.tensor,
    FP8: tl.constexpr,
    BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """``(inputs,)`` times ROWS rows of the weight.

    An FP8 weight has one scale, or with BLOCKS one for 128 by 128: ROWS divides 128, so a program
    sees one row of them and its activations take the scales.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    used = row < rows
    at_row = row.to(tl.int64)
    acc = tl.zeros((ROWS, TILE), tl.float32)
    for first in tl.range(0, inputs, TILE):
        i = first + tl.arange(0, TILE)
        inside = i < inputs
        mask = used[:, None] & inside[None, :]
        value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
        if BLOCKS:
            at = tl.program_id(0) * ROWS // _BLOCK * scale_stride + i // _BLOCK
            value *= tl.load(scales + at, mask=inside, other=0.0)
        w = tl.load(weight + at_row[:, None] * inputs + i[None, :], mask=mask, other=0)
        if FP8:
            acc += _e4m3(w) * value[None, :]
        else:
            acc += w.to(tl.float32) * value[None, :]
    y = tl.sum(acc, 1)
    if FP8 and not BLOCKS:
        y *= tl.load(scales)
    if BIAS:
        y += tl.load(bias + row, mask=used, other=0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=used)


@jit
def dense_matmul(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    split_inputs: tl.tensor,
    scale_stride: tl.tensor,
    FP8: tl.constexpr,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Sums over one split's inputs into ``out[split, token, row]``, rounded to its dtype.

    For an FP8 weight TILE is 128, and ROWS divides it.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    used = row < rows
    at_row = row.to(tl.int64)
    at_token = token.to(tl.int64)
    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    begin = split * split_inputs
    for first in tl.range(begin, tl.minimum(begin + split_inputs, inputs), TILE):
        i = first + tl.arange(0, TILE)
        inside = i < inputs
        taken = (token < tokens)[:, None] & inside[None, :]
        xs = tl.load(x + at_token[:, None] * inputs + i[None, :], mask=taken, other=0.0)
        mask = used[:, None] & inside[None, :]
        w = tl.load(weight + at_row[:, None] * inputs + i[None, :], mask=mask, other=0)
        if FP8:
            part = tl.dot(xs, tl.trans(_e4m3(w).to(xs.dtype)), input_precision="ieee")
            if BLOCKS:
                at = tl.program_id(0) * ROWS // _BLOCK * scale_stride + first // _BLOCK
                part *= tl.load(scales + at)
            acc += part
        else:
            acc += tl.dot(xs, tl.trans(w), input_precision="ieee")
    if FP8 and not BLOCKS:
        acc *= tl.load(scales)
    at = (split * tokens + token).to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & used[None, :])


@jit
def unpack_fp8(
    weight: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    first_row: tl.tensor,
    count: tl.tensor,
    inputs: tl.tensor,
    scale_stride: tl.tensor,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """*count* rows of an FP8 weight from *first_row* on, a multiple of ROWS, times their scales."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = (first_row + number).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = (number < count)[:, None] & (i < inputs)[None, :]
    value = _e4m3(tl.load(weight + row[:, None] * inputs + i[None, :], mask=mask, other=0))
    if BLOCKS:
        at = (row // _BLOCK)[:, None] * scale_stride + (i // _BLOCK)[None, :]
        value *= tl.load(scales + at, mask=mask, other=0.0)
    else:
        value *= tl.load(scales)
    at_out = number.to(tl.int64)[:, None] * inputs + i[None, :]
    tl.store(out + at_out, value.to(out.dtype.element_ty), mask=mask)
