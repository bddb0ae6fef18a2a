"""Masks of the rows whose tokens are constrained, made on helper threads while the device works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Sequence as Items
from concurrent import futures
from contextlib import contextmanager

import numpy as np
import torch

from cortex.engine.constraint import Constraint, Words
from cortex.engine.sequence import Sequence

HELPERS = 4  # threads at most; a mask takes some tens of microseconds, seldom a few milliseconds
# What a step waits for a mask at most, in seconds: far beyond what a constraint's own limits allow.
PATIENCE = 30.0


class Mask:
    """The masks of one step. ``rows`` are the constrained lines of its logits, in order.

    ``faults`` are complete after `finish`: what went wrong, by line. A line at fault allows
    everything: what is drawn for it is to be thrown away.
    """

    def __init__(
        self, rows: Items[int], words: torch.Tensor, made: Items[futures.Future[None]]
    ) -> None:
        self.rows = tuple(rows)
        self.faults: dict[int, Exception] = {}
        self._words = words
        self._made = tuple(made)
        self._finished = False

    def finish(self) -> None:
        """Wait until every line is written. May be called again."""
        if self._finished:
            return
        self._finished = True
        futures.wait(self._made, PATIENCE)
        for row, words, made in zip(self.rows, self._words, self._made, strict=True):
            fault = _fault_of(made)
            if fault is not None:
                self.faults[row] = fault
                words.fill_(-1)

    def apply(self, logits: torch.Tensor) -> None:
        """Set the logits, ``(lines, vocabulary)``, of forbidden tokens to -inf, in place."""
        self.finish()
        octets = self._words.view(torch.uint8).to(logits.device, non_blocking=True)
        bits = 1 << torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = (octets[:, :, None] & bits != 0).flatten(1)[:, : logits.shape[1]]
        if len(self.rows) == len(logits):
            logits.masked_fill_(~allowed, -torch.inf)
            return
        rows = torch.tensor(self.rows).to(logits.device, non_blocking=True)
        logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(~allowed, -torch.inf))


class Masks:
    """Owns the helper threads, which are started by the first constrained step."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._pinned = device.type == "cuda"
        self._pool: futures.ThreadPoolExecutor | None = None

    @contextmanager
    def filling(self, sequences: Items[Sequence]) -> Iterator[Mask | None]:
        """Fill the masks for the next tokens of *sequences*, whose order is that of the lines; None
        where none of them is constrained. Leaving waits: the constraints are free again then."""
        mask = self._begin(sequences)
        try:
            yield mask
        finally:
            if mask is not None:
                mask.finish()

    def _begin(self, sequences: Items[Sequence]) -> Mask | None:
        constraints = {
            line: sequence.request.constraint
            for line, sequence in enumerate(sequences)
            if sequence.request.constraint is not None
        }
        if not constraints:
            return None
        if self._pool is None:
            helpers = min(HELPERS, os.cpu_count() or 1)
            self._pool = futures.ThreadPoolExecutor(helpers, "cortex-mask")
        shape = (len(constraints), -(-self._vocab_size // 32))
        words = torch.zeros(shape, dtype=torch.int32, pin_memory=self._pinned)
        made = [
            self._pool.submit(_fill, constraint, row, self._vocab_size)
            for constraint, row in zip(constraints.values(), words.numpy(), strict=True)
        ]
        return Mask(list(constraints), words, made)

    def close(self) -> None:
        """Let the helpers end; nothing is waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _fill(constraint: Constraint, row: Words, vocab_size: int) -> None:
    constraint.fill_mask(row)
    if vocab_size % 32:
        row[-1] &= np.int32((1 << vocab_size % 32) - 1)
    if not row.any():
        raise ValueError("the constraint allows no token at all")


def _fault_of(made: futures.Future[None]) -> Exception | None:
    if not made.done():
        return TimeoutError(f"the constraint did not say within {PATIENCE:g} s what may follow")
    fault = made.exception()
    if fault is None or isinstance(fault, Exception):
        return fault
    error = RuntimeError("the constraint failed")  # a native library's panic is no Exception
    error.__cause__ = fault
    return error
