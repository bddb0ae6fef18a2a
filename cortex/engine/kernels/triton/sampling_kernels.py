"""The passes over logits that draw without sorting: see `sampling`."""

from __future__ import annotations

import triton.language as tl

from cortex.engine.kernels.torch_draw import GREEDY_BELOW
from cortex.engine.kernels.triton.jit import jit

ROUNDS = 8
_LAST = tl.constexpr(ROUNDS)
_DIGITS = tl.constexpr(16)
_TOP_BIT = tl.constexpr(-(1 << 31))
_WARM = tl.constexpr(GREEDY_BELOW)
_BELOW_ONE = tl.constexpr(1 - 1e-12)


@jit
def _scaled(
    logits: tl.tensor,
    bitmask: tl.tensor,
    temperatures: tl.tensor,
    row: tl.tensor,
    i: tl.tensor,
    size: tl.tensor,
    words: tl.tensor,
    MASK: tl.constexpr,
) -> tl.tensor:
    """The logits *i* of a row over its temperature; -inf where they do not exist or may not be."""
    inside = i < size
    value = tl.load(logits + row.to(tl.int64) * size + i, mask=inside, other=float("-inf"))
    value = value.to(tl.float32)
    if MASK:
        word = tl.load(bitmask + row * words + i // 32, mask=inside, other=0)
        value = tl.where(((word >> (i % 32)) & 1) == 1, value, float("-inf"))
    heat = tl.load(temperatures + row)
    return value / tl.where(heat >= _WARM, heat, 1.0)


@jit
def _ordered(value: tl.tensor) -> tl.tensor:
    """fp32 as int32 of the same order, of which the digits are then those of an unsigned number."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def scan(
    logits: tl.tensor,
    bitmask: tl.tensor,
    temperatures: tl.tensor,
    bests: tl.tensor,
    places: tl.tensor,
    size: tl.tensor,
    words: tl.tensor,
    MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The greatest logit of each chunk and where it is first."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    i = split * SIZE + tl.arange(0, SIZE)
    value = _scaled(logits, bitmask, temperatures, row, i, size, words, MASK)
    best = tl.max(value, 0)
    place = tl.min(tl.where(value == best, i, size - 1), 0)
    tl.store(bests + row * SPLITS + split, best)
    tl.store(places + row * SPLITS + split, place)


@jit
def _best(
    bests: tl.tensor, row: tl.tensor, SPLITS: tl.constexpr, PADDED: tl.constexpr
) -> tl.tensor:
    split = tl.arange(0, PADDED)
    return tl.max(
        tl.load(bests + row * SPLITS + split, mask=split < SPLITS, other=float("-inf")), 0
    )


@jit
def _descended(
    parts: tl.tensor,
    prefixes: tl.tensor,
    sums: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    limit: tl.tensor,
    STAGE: tl.constexpr,
    SHARE: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """After STAGE rounds: the digits found so far, the sum above them, and the sum to reach.

    ``sums[stage, row]`` are pairs (above, wanted). With SHARE *limit* is a share of the total, else
    the sum itself.
    """
    prefix = 0
    above = tl.zeros((), tl.float64)
    wanted = limit
    if STAGE > 0:
        split = tl.arange(0, PADDED)
        rank = tl.arange(0, _DIGITS)  # 0 for digit 15
        at = ((((STAGE - 1) % 2) * rows + row) * SPLITS + split[:, None]) * _DIGITS + rank[None, :]
        part = tl.load(parts + at, mask=(split < SPLITS)[:, None], other=0.0).to(tl.float64)
        mass = tl.sum(part, 0)
        if STAGE > 1:
            cell = (STAGE - 1) * rows + row
            prefix = tl.load(prefixes + cell)
            above = tl.load(sums + cell * 2)
            wanted = tl.load(sums + cell * 2 + 1)
        elif SHARE:
            wanted = limit * tl.sum(mass, 0)
        reached = above + tl.cumsum(mass, 0) >= wanted
        chosen = tl.min(tl.where(reached, rank, _DIGITS - 1), 0)
        above += tl.sum(tl.where(rank < chosen, mass, 0.0), 0)
        prefix = prefix | ((_DIGITS - 1 - chosen) << (32 - 4 * STAGE))
    return prefix, above, wanted


@jit
def _floor(
    parts: tl.tensor,
    prefixes: tl.tensor,
    sums: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    limited: tl.tensor,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """The ordered integer from which on a finished search keeps, the least one if not *limited*."""
    zero = tl.zeros((), tl.float64)
    prefix, _above, _wanted = _descended(
        parts, prefixes, sums, row, rows, zero, _LAST, False, SPLITS, PADDED
    )
    return tl.where(limited, prefix ^ _TOP_BIT, _TOP_BIT)


@jit
def search(
    logits: tl.tensor,
    bitmask: tl.tensor,
    temperatures: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    bests: tl.tensor,
    count_parts: tl.tensor,
    count_prefixes: tl.tensor,
    count_sums: tl.tensor,
    mass_parts: tl.tensor,
    mass_prefixes: tl.tensor,
    mass_sums: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    words: tl.tensor,
    MASS: tl.constexpr,
    AFTER_COUNT: tl.constexpr,
    ROUND: tl.constexpr,
    MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """One round over one chunk, for top-k (counts) or for top-p (masses of what top-k left)."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    if tl.load(temperatures + row) < _WARM:
        return
    k = tl.load(top_k + row)
    if MASS:
        share = tl.load(top_p + row).to(tl.float64)
        if share >= 1:
            return
        parts = mass_parts
        prefixes = mass_prefixes
        sums = mass_sums
        limit = share
    else:
        if (k <= 0) | (k >= size):
            return
        parts = count_parts
        prefixes = count_prefixes
        sums = count_sums
        limit = k.to(tl.float64)
    prefix, above, wanted = _descended(
        parts, prefixes, sums, row, rows, limit, ROUND, MASS, SPLITS, PADDED
    )
    if ROUND > 0:  # noqa: SIM102 - known when it is compiled, the other when it runs
        if split == 0:
            cell = ROUND * rows + row
            tl.store(prefixes + cell, prefix)
            tl.store(sums + cell * 2, above)
            tl.store(sums + cell * 2 + 1, wanted)

    i = split * SIZE + tl.arange(0, SIZE)
    value = _scaled(logits, bitmask, temperatures, row, i, size, words, MASK)
    order = _ordered(value)
    live = i < size
    if MASS:
        weight = tl.exp(value - _best(bests, row, SPLITS, PADDED))
        if AFTER_COUNT:
            limited = (k > 0) & (k < size)
            live &= order >= _floor(
                count_parts, count_prefixes, count_sums, row, rows, limited, SPLITS, PADDED
            )
    else:
        weight = tl.full((SIZE,), 1.0, tl.float32)
    digits = order ^ _TOP_BIT
    if ROUND > 0:
        live &= ((digits ^ prefix) >> (32 - 4 * ROUND)) == 0
    weight = tl.where(live, weight, 0.0)
    digit = (digits >> (28 - 4 * ROUND)) & 15
    at = parts + (((ROUND % 2) * rows + row) * SPLITS + split) * _DIGITS
    for rank in tl.static_range(16):
        tl.store(at + rank, tl.sum(tl.where(digit == 15 - rank, weight, 0.0), 0))


@jit
def _threshold(
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    best: tl.tensor,
    count_parts: tl.tensor,
    count_prefixes: tl.tensor,
    count_sums: tl.tensor,
    mass_parts: tl.tensor,
    mass_prefixes: tl.tensor,
    mass_sums: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    COUNT: tl.constexpr,
    MASS: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """The ordered integer from which on all of a row's cuts keep."""
    least = tl.load(min_p + row)
    floor = tl.where(least > 0, _ordered(best + tl.log(tl.where(least > 0, least, 1.0))), _TOP_BIT)
    if COUNT:
        k = tl.load(top_k + row)
        limited = (k > 0) & (k < size)
        floor = tl.maximum(
            floor,
            _floor(count_parts, count_prefixes, count_sums, row, rows, limited, SPLITS, PADDED),
        )
    if MASS:
        limited = tl.load(top_p + row) < 1
        floor = tl.maximum(
            floor, _floor(mass_parts, mass_prefixes, mass_sums, row, rows, limited, SPLITS, PADDED)
        )
    return floor


@jit
def weigh(
    logits: tl.tensor,
    bitmask: tl.tensor,
    temperatures: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    bests: tl.tensor,
    count_parts: tl.tensor,
    count_prefixes: tl.tensor,
    count_sums: tl.tensor,
    mass_parts: tl.tensor,
    mass_prefixes: tl.tensor,
    mass_sums: tl.tensor,
    floors: tl.tensor,
    weights: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    words: tl.tensor,
    COUNT: tl.constexpr,
    MASS: tl.constexpr,
    MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The sum of what is kept of each chunk."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    best = _best(bests, row, SPLITS, PADDED)
    floor = _threshold(
        top_k, top_p, min_p, best, count_parts, count_prefixes, count_sums, mass_parts,
        mass_prefixes, mass_sums, row, rows, size, COUNT, MASS, SPLITS, PADDED,
    )  # fmt: skip
    if split == 0:
        tl.store(floors + row, floor)
    i = split * SIZE + tl.arange(0, SIZE)
    value = _scaled(logits, bitmask, temperatures, row, i, size, words, MASK)
    kept = (_ordered(value) >= floor) & (i < size)
    weight = tl.where(kept, tl.exp(value - best), 0.0)
    tl.store(weights + row * SPLITS + split, tl.sum(weight, 0))


@jit
def pick(
    logits: tl.tensor,
    bitmask: tl.tensor,
    temperatures: tl.tensor,
    numbers: tl.tensor,
    bests: tl.tensor,
    places: tl.tensor,
    floors: tl.tensor,
    weights: tl.tensor,
    tokens: tl.tensor,
    size: tl.tensor,
    words: tl.tensor,
    WARM: tl.constexpr,
    MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The token of a row: the best one, or where the kept weights pass the row's number."""
    row = tl.program_id(0)
    split = tl.arange(0, PADDED)
    there = split < SPLITS
    best = _best(bests, row, SPLITS, PADDED)
    value = tl.load(bests + row * SPLITS + split, mask=there, other=float("-inf"))
    place = tl.load(places + row * SPLITS + split, mask=there, other=0)
    token = tl.min(tl.where(there & (value == best), place, size - 1), 0)
    if WARM:  # noqa: SIM102 - known when it is compiled, the other when it runs
        if tl.load(temperatures + row) >= _WARM:
            sums = tl.load(weights + row * SPLITS + split, mask=there, other=0.0).to(tl.float64)
            total = tl.sum(sums, 0)
            at = tl.load(numbers + row).to(tl.float64) * total
            at = tl.minimum(at, total * _BELOW_ONE)
            ends = tl.cumsum(sums, 0)
            lane = tl.minimum(tl.sum((there & (ends <= at)).to(tl.int32), 0), SPLITS - 1)
            before = tl.sum(tl.where(split < lane, sums, 0.0), 0)

            i = lane * SIZE + tl.arange(0, SIZE)
            scaled = _scaled(logits, bitmask, temperatures, row, i, size, words, MASK)
            kept = (_ordered(scaled) >= tl.load(floors + row)) & (i < size)
            weight = tl.where(kept, tl.exp(scaled - best), 0.0).to(tl.float64)
            inside = tl.cumsum(weight, 0)
            # The two levels are rounded apart: stay within the chunk, short of its end.
            rest = tl.minimum(tl.maximum(at - before, 0.0), tl.sum(weight, 0) * _BELOW_ONE)
            passed = tl.sum((inside <= rest).to(tl.int32), 0)
            token = tl.minimum(lane * SIZE + passed, size - 1)
    tl.store(tokens + row, token.to(tl.int64))
