"""Attention of a few rows a sequence over the paged cache: decode, and the check of drafts.

The keys of a sequence are cut into segments, one program each, so that a single long sequence
fills the device; a second kernel merges what the segments found. The grid depends on the batch's
shape alone: programs find their bounds from the lengths on the device, and those with nothing to
do return at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from cortex.engine.kernels.triton.jit import jit
from cortex.engine.kernels.triton.scratch import Scratch

QUERY_ROWS = 16  # rows of a tile: the least that the matrix unit takes
PROGRAMS_PER_SM = 4
MAX_SEGMENTS = 64
_TILE_BYTES = 1 << 14  # of keys, and as much of values, on their way at a time
_WIDE = 256  # heads beyond get twice the threads
_LOG2E = math.log2(math.e)


@jit
def _bounds(
    length: tl.tensor, rows: tl.tensor, WINDOW: tl.constexpr, TILE: tl.constexpr
) -> tl.tensor:
    """The tiles that *rows* last positions of a sequence see: first, and after the last."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - rows + 1 - WINDOW, 0) // TILE
    return first, tl.cdiv(length, TILE)


@jit
def _attend(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    firsts: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    part_acc: tl.tensor,
    part_max: tl.tensor,
    part_sum: tl.tensor,
    scale: tl.tensor,
    table_stride: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
) -> None:
    """One segment of one sequence for ROWS pairs of (row, head) that share a key head.

    Pair i of the sequence is row i // group and head i % group of the key head.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1) // ROW_TILES
    pair = (tl.program_id(1) % ROW_TILES) * ROWS + tl.arange(0, ROWS)
    segment = tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS

    first_row = tl.load(firsts + sequence)
    rows = tl.load(firsts + sequence + 1) - first_row
    length = tl.load(lengths + sequence)
    low, high = _bounds(length, rows, WINDOW, TILE)
    count = tl.cdiv(high - low, SEGMENTS)
    begin = low + segment * count
    end = tl.minimum(begin + count, high)
    if SEGMENTS > 1:  # noqa: SIM102 - known when it is compiled, the other when it runs
        if begin >= end:
            return

    query = pair // GROUP
    head = kv_head * GROUP + pair % GROUP
    at = ((first_row + query) * HEADS + head).to(tl.int64)
    dim = tl.arange(0, DIM_PADDED)
    used = query < rows
    inside = dim < DIM
    wanted = tl.load(
        q + at[:, None] * DIM + dim[None, :], mask=used[:, None] & inside[None, :], other=0.0
    )
    position = length - rows + query

    offsets = tl.arange(0, TILE)
    place = offsets[:, None] * (KV_HEADS * DIM) + kv_head * DIM + dim[None, :]
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM_PADDED), tl.float32)
    for tile in tl.range(begin, end):
        token = tile * TILE
        block = tl.load(tables + sequence * table_stride + token // BLOCK).to(tl.int64)
        base = (block * BLOCK + token % BLOCK) * (KV_HEADS * DIM)
        key_at = token + offsets
        stored = (key_at < length)[:, None] & inside[None, :]
        k = tl.load(keys + base + place, mask=stored, other=0.0)
        score = tl.dot(wanted, tl.trans(k), input_precision="ieee") * scale
        seen = key_at[None, :] <= position[:, None]
        if WINDOW > 0:
            seen &= key_at[None, :] > position[:, None] - WINDOW
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(best, tl.max(score, 1))
        # Rows that saw nothing yet: keep the differences from being inf - inf.
        level = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(score - level[:, None])
        fade = tl.exp2(best - level)
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(values + base + place, mask=stored, other=0.0)
        acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        best = new

    if SEGMENTS == 1:
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(
            out + at[:, None] * DIM + dim[None, :],
            result.to(out.dtype.element_ty),
            mask=used[:, None] & inside[None, :],
        )
    else:
        cell = at * SEGMENTS + segment
        tl.store(part_max + cell, best, mask=used)
        tl.store(part_sum + cell, total, mask=used)
        tl.store(
            part_acc + cell[:, None] * DIM + dim[None, :],
            acc,
            mask=used[:, None] & inside[None, :],
        )


@jit
def _merge(
    part_acc: tl.tensor,
    part_max: tl.tensor,
    part_sum: tl.tensor,
    firsts: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    SEGMENTS: tl.constexpr,
) -> None:
    """The segments of one row and head, weighed by what each has seen."""
    sequence = tl.program_id(0)
    query = tl.program_id(1) // HEADS
    head = tl.program_id(1) % HEADS
    first_row = tl.load(firsts + sequence)
    rows = tl.load(firsts + sequence + 1) - first_row
    if query >= rows:
        return
    length = tl.load(lengths + sequence)
    low, high = _bounds(length, rows, WINDOW, TILE)
    count = tl.maximum(tl.cdiv(high - low, SEGMENTS), 1)
    segment = tl.arange(0, SEGMENTS)
    written = segment < tl.cdiv(high - low, count)
    at = ((first_row + query) * HEADS + head).to(tl.int64)
    cell = at * SEGMENTS + segment
    best = tl.load(part_max + cell, mask=written, other=float("-inf"))
    total = tl.load(part_sum + cell, mask=written, other=0.0)
    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    acc = tl.load(
        part_acc + cell[:, None] * DIM + dim[None, :],
        mask=written[:, None] & inside[None, :],
        other=0.0,
    )
    level = tl.max(best, 0)
    level = tl.where(level == float("-inf"), 0.0, level)
    share = tl.exp2(best - level)
    whole = tl.sum(total * share, 0)
    result = tl.sum(acc * share[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    tl.store(out + at * DIM + dim, result.to(out.dtype.element_ty), mask=inside)


def segments_for(programs: int, width: int, multiprocessors: int) -> int:
    """In how many segments keys are cut: a power of two, fixed for a shape of batch.

    *programs* is how many there are with one segment, *width* how many tiles a sequence can have.
    """
    wanted = multiprocessors * PROGRAMS_PER_SM // max(programs, 1)
    most = min(wanted, MAX_SEGMENTS, triton.next_power_of_2(max(width, 1)))
    return int(1 << max(most, 1).bit_length() - 1)


class DecodeAttention:
    """Launches both kernels. ``multiprocessors`` is how many the device has."""

    def __init__(self, scratch: Scratch, multiprocessors: int) -> None:
        self._scratch = scratch
        self._multiprocessors = multiprocessors

    def __call__(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        tables: torch.Tensor,
        firsts: torch.Tensor,
        lengths: torch.Tensor,
        queries: int,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        """Write ``(rows, heads * head_dim)`` to *out* for sequences of at most *queries* rows.

        *q* is ``(rows, heads, head_dim)``, the caches ``(blocks, block, kv_heads, head_dim)``, all
        contiguous; *tables* ``(sequences, blocks)``, *firsts* ``(sequences + 1,)`` and *lengths*
        ``(sequences,)`` int32. A row without anything to see gets zeros.
        """
        sequences, width = tables.shape
        block, kv_heads, dim = keys.shape[1:]
        heads = q.shape[1]
        padded = max(triton.next_power_of_2(dim), 16)
        tile = min(block, max(_TILE_BYTES // (padded * keys.element_size()), 16))
        row_tiles = -(-heads // kv_heads * queries // QUERY_ROWS)
        segments = segments_for(
            sequences * kv_heads * row_tiles, width * block // tile, self._multiprocessors
        )
        cells = q.shape[0] * heads * segments if segments > 1 else 0
        part_acc = self._scratch.take("attention", (cells, dim), torch.float32)
        part_max = self._scratch.take("attention maxima", (cells,), torch.float32)
        part_sum = self._scratch.take("attention sums", (cells,), torch.float32)
        shape = {
            "HEADS": heads,
            "DIM": dim,
            "DIM_PADDED": padded,
            "TILE": tile,
            "WINDOW": window or 0,
            "SEGMENTS": segments,
        }
        _attend[(sequences, kv_heads * row_tiles, segments)](
            q,
            keys,
            values,
            tables,
            firsts,
            lengths,
            out,
            part_acc,
            part_max,
            part_sum,
            dim**-0.5 * _LOG2E,
            tables.stride(0),
            KV_HEADS=kv_heads,
            BLOCK=block,
            ROWS=QUERY_ROWS,
            ROW_TILES=row_tiles,
            **shape,
            num_warps=4 if padded <= _WIDE else 8,
            num_stages=3,
        )
        if segments > 1:
            _merge[(sequences, queries * heads)](
                part_acc, part_max, part_sum, firsts, lengths, out, **shape, num_warps=4
            )
