"""From a plan to tensors: ids, positions, slots, and what each row attends to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from cortex.engine.layers.attention import Group, Keys, Span, View
from cortex.engine.scheduler import Chunk, Plan
from cortex.engine.sequence import Sequence

Ints = npt.NDArray[np.int64]

UNKNOWN = -1  # in place of a token that an earlier step, still under way, is drawing


def _tokens(chunk: Chunk) -> list[int]:
    """The chunk's tokens; the last may be `UNKNOWN`."""
    known = chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
    return known if len(known) == chunk.count else [*known, UNKNOWN]


@attrs.define(eq=False)
class Batch:
    """One step on the device. Rows in decode come first; ``chunks`` are in the order of rows.

    ``slots`` are block * block size + offset. ``draws`` are the rows whose logits are drawn from,
    None where that is every row; ``drawn`` the sequences in that order. Chunk i is rows
    ``firsts[i]`` to ``firsts[i + 1]`` and has KV at ``lengths[i]`` positions, itself included, in
    the blocks ``tables[i]``; the first ``decodes`` chunks are one row each, and ``longest`` is the
    greatest of the lengths.
    """

    tokens: torch.Tensor  # (rows,); UNKNOWN where the device alone knows it
    positions: torch.Tensor  # (rows,)
    slots: torch.Tensor  # (rows,)
    tables: torch.Tensor  # (chunks, blocks) int32, padded with the null block
    firsts: torch.Tensor  # (chunks + 1,) int32
    lengths: torch.Tensor  # (chunks,) int32
    decodes: int
    longest: int
    draws: torch.Tensor | None  # (drawn,)
    drawn: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    owners: torch.Tensor | None  # (rows,) the sequence's row of each; where some are UNKNOWN
    _make_view: Callable[[int | None], View]
    _views: dict[int | None, View] = attrs.field(factory=dict, init=False)

    def view(self, window: int | None) -> View:
        """What the rows see in the layers of one *window*, for attention in plain torch.

        Made when first asked for, before the next batch is built: other kernels need none.
        """
        found = self._views.get(window)
        if found is None:
            found = self._views[window] = self._make_view(window)
        return found


class BatchBuilder:
    """Keeps every running sequence's block table, one row each, and builds batches from them."""

    def __init__(
        self,
        *,
        rows: int,
        blocks_per_row: int,
        block_size: int,
        null_block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._size = block_size
        self._null = null_block
        self._dtype = dtype
        self._device = device
        self._tables = np.full((rows, blocks_per_row), null_block, dtype=np.int32)
        self._filled: list[tuple[Sequence | None, int, int]] = [(None, 0, 0)] * rows

    def build(self, plan: Plan) -> Batch:
        decodes = sorted(plan.decodes, key=lambda chunk: -chunk.start)
        chunks = (*decodes, *plan.prefills)
        for chunk in chunks:
            self._refresh(chunk.sequence)
        rows = np.fromiter((c.sequence.row for c in chunks), np.int64, len(chunks))
        counts = np.fromiter((c.count for c in chunks), np.int64, len(chunks))
        starts = np.fromiter((c.start for c in chunks), np.int64, len(chunks))
        firsts = np.cumsum(counts) - counts
        total = int(counts.sum())
        positions = np.arange(total) - np.repeat(firsts - starts, counts)
        blocks = self._tables[np.repeat(rows, counts), positions // self._size].astype(np.int64)
        tokens = np.array([t for c in chunks for t in _tokens(c)], dtype=np.int64)
        unknown = bool((tokens == UNKNOWN).any())
        drawn = [i for i, chunk in enumerate(chunks) if chunk.draws]
        last = (firsts + counts - 1)[drawn]
        longest = int((starts + counts).max())
        tables = self._tables[rows, : -(-longest // self._size)]
        return Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self._tensor(blocks * self._size + positions % self._size),
            tables=self._tensor(tables),
            firsts=self._tensor(np.append(firsts, total).astype(np.int32)),
            lengths=self._tensor((starts + counts).astype(np.int32)),
            decodes=len(decodes),
            longest=longest,
            draws=None if len(drawn) == total else self._tensor(last),
            drawn=tuple(chunks[i].sequence for i in drawn),
            chunks=chunks,
            owners=self._tensor(np.repeat(rows, counts)) if unknown else None,
            make_view=partial(self._view, len(decodes), rows, starts, counts),
        )

    def _refresh(self, sequence: Sequence) -> None:
        """Write the blocks that the sequence's row does not show yet."""
        row = sequence.row
        owner, admission, count = self._filled[row]
        if owner is not sequence or admission != sequence.preemptions:
            self._tables[row] = self._null
            count = 0
        if count < len(sequence.blocks):
            self._tables[row, count : len(sequence.blocks)] = sequence.blocks[count:]
        self._filled[row] = (sequence, sequence.preemptions, len(sequence.blocks))

    def _view(
        self, decodes: int, rows: Ints, starts: Ints, counts: Ints, window: int | None
    ) -> View:
        lengths = starts + counts
        # The first position that the first token of each chunk sees, and the block that it is in.
        seen = np.zeros_like(starts) if window is None else np.maximum(starts + 1 - window, 0)
        low = seen // self._size
        blocks = -(-lengths // self._size) - low
        groups: list[Group] = []
        first = 0
        while first < decodes:
            # Longest first: a group ends where padding would double what is read.
            stop = first + 1
            while stop < decodes and 2 * blocks[stop] >= blocks[first]:
                stop += 1
            members = slice(first, stop)
            groups.append(
                self._group(
                    first,
                    rows[members],
                    low[members],
                    blocks[members].max(),
                    seen[members],
                    lengths[members],
                )
            )
            first = stop
        row = decodes
        spans: list[Span] = []
        for i in range(decodes, len(rows)):
            base = int(low[i]) * self._size
            keys = self._keys(rows[i : i + 1], low[i : i + 1], blocks[i], int(lengths[i]) - base)
            spans.append(Span(row, int(counts[i]), int(starts[i]) - base, keys, window))
            row += int(counts[i])
        return View(tuple(groups), tuple(spans))

    def _group(
        self, first: int, rows: Ints, low: Ints, blocks: np.int64, seen: Ints, lengths: Ints
    ) -> Group:
        base = low * self._size
        begin, end = seen - base, lengths - base
        longest = int(end.max())
        keys = self._keys(rows, low, blocks, longest)
        if not begin.any() and (end == longest).all():
            return Group(first, keys, None)
        at = np.arange(longest)
        hidden = (at < begin[:, None]) | (at >= end[:, None])
        mask = np.where(hidden, np.float32("-inf"), np.float32(0))[:, None, None]
        return Group(first, keys, torch.from_numpy(mask).to(self._device, self._dtype))

    def _keys(self, rows: Ints, low: Ints, blocks: np.int64, length: int) -> Keys:
        count = int(blocks)
        columns = low[:, None] + np.arange(count)
        width = self._tables.shape[1]
        table = self._tables[rows[:, None], np.minimum(columns, width - 1)]
        run = None
        if len(rows) == 1 and (np.diff(table[0]) == 1).all():
            run = int(table[0, 0])
        flat = table.reshape(-1).astype(np.int64)
        return Keys(self._tensor(flat), len(rows), count, length, run)

    def _tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)
