"""Products with weights in `planes`: of one row, of a few rows, and the weight itself in full.

One row is multiplied without the matrix unit. What limits it is not memory alone but the work of
unpacking, so codes become floats without shifts and conversions: a field masked out of a word in
place, or-ed into the mantissa of 2**23, is that float plus the field times a power of two that the
activation is divided by beforehand.
"""

from __future__ import annotations

import triton.language as tl

from cortex.engine.kernels.triton.jit import jit

_BIG = tl.constexpr(8388608.0)  # 2**23: its mantissa counts units
_BIG_BITS = tl.constexpr(0x4B000000)


@jit
def _field(word: tl.tensor, NUMBER: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """Field NUMBER of *word* as a float, times 2 to the power of ``NUMBER * BITS % 16``."""
    at = word
    if NUMBER * BITS >= 16:
        at = word >> 16
    bits = (at & (((1 << BITS) - 1) << (NUMBER * BITS % 16))) | _BIG_BITS
    return bits.to(tl.float32, bitcast=True) - _BIG


@jit
def _scaled(
    value: tl.tensor, NUMBER: tl.constexpr, BITS: tl.constexpr, ABOVE: tl.constexpr
) -> tl.tensor:
    """Activations for a `_field` whose lowest bit is bit ABOVE of its code."""
    return (value * ((1 << ABOVE) / (1 << (NUMBER * BITS % 16))))[None, :]


@jit
def _fields_times(
    word: tl.tensor,
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    x4: tl.tensor,
    x5: tl.tensor,
    x6: tl.tensor,
    x7: tl.tensor,
    BITS: tl.constexpr,
    ABOVE: tl.constexpr,
) -> tl.tensor:
    """The fields of each word times their activations, summed."""
    part = _field(word, 0, BITS) * _scaled(x0, 0, BITS, ABOVE)
    part += _field(word, 1, BITS) * _scaled(x1, 1, BITS, ABOVE)
    part += _field(word, 2, BITS) * _scaled(x2, 2, BITS, ABOVE)
    part += _field(word, 3, BITS) * _scaled(x3, 3, BITS, ABOVE)
    part += _field(word, 4, BITS) * _scaled(x4, 4, BITS, ABOVE)
    part += _field(word, 5, BITS) * _scaled(x5, 5, BITS, ABOVE)
    part += _field(word, 6, BITS) * _scaled(x6, 6, BITS, ABOVE)
    return part + _field(word, 7, BITS) * _scaled(x7, 7, BITS, ABOVE)


@jit
def _activations(x: tl.tensor, j: tl.tensor, inside: tl.tensor, NUMBER: tl.constexpr) -> tl.tensor:
    """What field NUMBER of words *j* is multiplied by."""
    return tl.load(x + j * 8 + NUMBER, mask=inside, other=0.0).to(tl.float32)


@jit
def packed_gemv(
    x: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    words: tl.tensor,
    groups: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ZERO: tl.constexpr,
    OFFSETS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """``(8 words,)`` times the weight, ROWS whole rows at a time; TILE is at least *words*.

    A program keeps the activations in registers and goes through every so many rows. Not for
    layouts with a table.
    """
    # All planes are read four words a thread, else they would have to be moved between threads.
    j = tl.max_contiguous(tl.arange(0, TILE), 4)
    inside = j < words
    x0 = _activations(x, j, inside, 0)
    x1 = _activations(x, j, inside, 1)
    x2 = _activations(x, j, inside, 2)
    x3 = _activations(x, j, inside, 3)
    x4 = _activations(x, j, inside, 4)
    x5 = _activations(x, j, inside, 5)
    x6 = _activations(x, j, inside, 6)
    x7 = _activations(x, j, inside, 7)
    whole = ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7))
    whole = tl.sum(tl.reshape(whole, (TILE // GROUP_WORDS, GROUP_WORDS)), 1)
    group = tl.arange(0, TILE // GROUP_WORDS)
    for block in tl.range(
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES
    ):
        row = block * ROWS + tl.arange(0, ROWS)
        used = row < rows
        at_row = row.to(tl.int64)
        mask = used[:, None] & inside[None, :]
        at = at_row[:, None] * words + j[None, :]
        word = tl.load(low + at, mask=mask, other=0).to(tl.int32)
        part = _fields_times(word, x0, x1, x2, x3, x4, x5, x6, x7, LOW, 0)
        if HIGH > 0:
            upper = tl.load(high + at, mask=mask, other=0).to(tl.int32)
            part += _fields_times(upper, x0, x1, x2, x3, x4, x5, x6, x7, HIGH, LOW)
        part = tl.sum(tl.reshape(part, (ROWS, TILE // GROUP_WORDS, GROUP_WORDS)), 2)
        if ZERO > 0:
            part -= ZERO * whole[None, :]
        at = at_row[:, None] * groups + group[None, :]
        mask = used[:, None] & (group < groups)[None, :]
        part *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
        if OFFSETS:
            part += tl.load(offsets + at, mask=mask, other=0.0).to(tl.float32) * whole[None, :]
        y = tl.sum(part, 1)
        if BIAS:
            y += tl.load(bias + row, mask=used, other=0.0).to(tl.float32)
        tl.store(out + row, y.to(out.dtype.element_ty), mask=used)


@jit
def _unpacked(
    low: tl.tensor,
    high: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    table: tl.tensor,
    at_row: tl.tensor,
    used: tl.tensor,
    first: tl.tensor,
    words: tl.tensor,
    groups: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ZERO: tl.constexpr,
    OFFSETS: tl.constexpr,
    TABLE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """TILE words of ROWS rows from word *first*: ``(ROWS, 8 TILE)`` fp32, 0 beyond the weight."""
    j = tl.max_contiguous(first + tl.arange(0, TILE), 4)
    mask = used[:, None] & (j < words)[None, :]
    number = tl.arange(0, 8)[None, None, :]
    at = at_row[:, None] * words + j[None, :]
    word = tl.load(low + at, mask=mask, other=0).to(tl.int32)
    code = (word[:, :, None] >> (number * LOW)) & ((1 << LOW) - 1)
    if HIGH > 0:
        upper = tl.load(high + at, mask=mask, other=0).to(tl.int32)
        code |= ((upper[:, :, None] >> (number * HIGH)) & ((1 << HIGH) - 1)) << LOW
    if TABLE:
        value = tl.load(table + code)
    else:
        value = (code | _BIG_BITS).to(tl.float32, bitcast=True) - (_BIG + ZERO)
    group = first // GROUP_WORDS + tl.arange(0, TILE // GROUP_WORDS)
    at = at_row[:, None] * groups + group[None, :]
    mask = used[:, None] & (group < groups)[None, :]
    value = tl.reshape(value, (ROWS, TILE // GROUP_WORDS, 8 * GROUP_WORDS))
    value *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)[:, :, None]
    if OFFSETS:
        value += tl.load(offsets + at, mask=mask, other=0.0).to(tl.float32)[:, :, None]
    return tl.reshape(value, (ROWS, 8 * TILE))


@jit
def packed_matmul(
    x: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    words: tl.tensor,
    groups: tl.tensor,
    split_words: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ZERO: tl.constexpr,
    OFFSETS: tl.constexpr,
    TABLE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Sums over one split's words into ``out[split, token, row]``, rounded to its dtype."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    used = row < rows
    at_row = row.to(tl.int64)
    k = tl.arange(0, 8 * TILE)
    acc = tl.zeros((TOKENS, ROWS), tl.float32)
    begin = split * split_words
    for first in tl.range(begin, tl.minimum(begin + split_words, words), TILE):
        weight = _unpacked(
            low, high, scales, offsets, table, at_row, used, first, words, groups,
            LOW, HIGH, GROUP_WORDS, ZERO, OFFSETS, TABLE, ROWS, TILE,
        )  # fmt: skip
        i = first * 8 + k
        taken = (token < tokens)[:, None] & (i < words * 8)[None, :]
        wide = token.to(tl.int64)[:, None] * (words * 8) + i[None, :]
        xs = tl.load(x + wide, mask=taken, other=0.0)
        acc += tl.dot(xs, tl.trans(weight.to(xs.dtype)), input_precision="ieee")
    at = (split * tokens + token).to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & used[None, :])


@jit
def unpack_rows(
    low: tl.tensor,
    high: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    table: tl.tensor,
    picked: tl.tensor,
    out: tl.tensor,
    first_row: tl.tensor,
    count: tl.tensor,
    words: tl.tensor,
    groups: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    ZERO: tl.constexpr,
    OFFSETS: tl.constexpr,
    TABLE: tl.constexpr,
    PICKED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """*count* rows of the weight to ``(count, 8 words)``: from *first_row* on, or the *picked*."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    used = number < count
    if PICKED:
        row = tl.load(picked + number, mask=used, other=0).to(tl.int64)
    else:
        row = (first_row + number).to(tl.int64)
    first = tl.program_id(1) * TILE
    value = _unpacked(
        low, high, scales, offsets, table, row, used, first, words, groups,
        LOW, HIGH, GROUP_WORDS, ZERO, OFFSETS, TABLE, ROWS, TILE,
    )  # fmt: skip
    i = first * 8 + tl.arange(0, 8 * TILE)
    at = number.to(tl.int64)[:, None] * (words * 8) + i[None, :]
    mask = used[:, None] & (i < words * 8)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
