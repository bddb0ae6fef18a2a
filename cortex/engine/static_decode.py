"""Decode with every address and size fixed, so that a GPU can replay it as one graph.

A program serves up to so many rows. What changes from step to step goes to the device in one copy;
block tables stay there and only what is new is written. Rows that nobody needs compute with the
scrap block and the scrap row, which belong to no sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import attrs
import numpy as np
import numpy.typing as npt
import torch

from cortex.engine.batch import UNKNOWN, Batch
from cortex.engine.cache import KVCache
from cortex.engine.kernels.ops import DrawParams, Ops
from cortex.engine.layers.attention import View
from cortex.engine.models.decoder import Decoder
from cortex.engine.sampler import uniform
from cortex.engine.sequence import Sequence

# Makes a function of fixed addresses into one that does the same again: `cortex.engine.graphs`.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

_ROW_BYTES = 8 + 4 * 4 + 3 * 4  # of `_Inputs`


def buckets(max_batch: int) -> list[int]:
    """The numbers of rows that there are programs for: every batch fits one with little waste."""
    small = [n for n in (1, 2, 4) if n < max_batch]
    eights = range(8, min(max_batch, 64), 8)
    return [*small, *eights, *range(64, max_batch, 32), max_batch]


def kept_bytes(max_batch: int, blocks: int, vocab_size: int) -> int:
    """What the programs of a runner keep on the device beside what they compute with: their
    results, inputs, and tables of *blocks* a row."""
    rows = sum(buckets(max_batch))
    return rows * (vocab_size * 4 + 2 * 8 + _ROW_BYTES) + (max_batch + 1) * blocks * 4


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy on *device* that the host does not wait for."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class DeviceTables:
    """Block tables on the device, ``(rows + 1, blocks)`` int32; the last row is scrap.

    Beyond what a sequence holds a row shows what was there before: lengths say what is read.
    """

    def __init__(self, rows: int, blocks: int, scrap_block: int, device: torch.device) -> None:
        self.blocks = torch.full((rows + 1, blocks), scrap_block, dtype=torch.int32, device=device)
        self._shown: list[tuple[Sequence | None, int, int]] = [(None, 0, 0)] * rows

    @property
    def scrap_row(self) -> int:
        return len(self._shown)

    def show(self, sequences: Items[Sequence]) -> None:
        """Write the blocks of *sequences* that their rows do not show yet."""
        rows: list[int] = []
        columns: list[int] = []
        blocks: list[int] = []
        for sequence in sequences:
            row, held = sequence.row, sequence.blocks
            owner, admission, count = self._shown[row]
            if owner is not sequence or admission != sequence.preemptions:
                count = 0
            if count < len(held):
                rows += [row] * (len(held) - count)
                columns += range(count, len(held))
                blocks += held[count:]
            self._shown[row] = (sequence, sequence.preemptions, len(held))
        if rows:
            places = to_device(np.array([rows, columns, blocks]), self.blocks.device)
            self.blocks.index_put_((places[0], places[1]), places[2].int())


class _Inputs:
    """What a step brings, in one buffer: filled on the host, copied at once."""

    def __init__(self, rows: int, scrap_row: int, device: torch.device) -> None:
        self._rows = rows
        self._scrap_row = scrap_row
        self._buffer = torch.empty(rows * _ROW_BYTES, dtype=torch.uint8, device=device)
        ints = self._part(8, 4, torch.int32)
        floats = self._part(24, 3, torch.float32)
        self.given, self.owners, self.lengths, top_k = ints
        self.params = DrawParams(
            temperature=floats[0],
            top_k=top_k,
            top_p=floats[1],
            min_p=floats[2],
            uniform=self._part(0, 1, torch.float64)[0],
        )

    def _part(self, start: int, lines: int, dtype: torch.dtype) -> torch.Tensor:
        size = self._rows * dtype.itemsize * lines
        part = self._buffer[self._rows * start : self._rows * start + size]
        return part.view(dtype).view(lines, self._rows)

    def fill(self, sequences: Items[Sequence]) -> None:
        """Send the state of *sequences*, one row each; the rest is scrap."""
        rows = self._rows
        host = torch.empty(
            rows * _ROW_BYTES, dtype=torch.uint8, pin_memory=self._buffer.device.type == "cuda"
        )
        array = host.numpy()
        ints = array[8 * rows : 24 * rows].view(np.int32).reshape(4, rows)
        floats = array[24 * rows :].view(np.float32).reshape(3, rows)
        numbers = array[: 8 * rows].view(np.float64)
        ints[:] = np.array([0, self._scrap_row, 1, 0])[:, None]
        floats[:] = np.array([0, 1, 0], dtype=np.float32)[:, None]
        numbers[:] = 0
        for i, sequence in enumerate(sequences):
            sampling, length = sequence.request.sampling, sequence.computed + 1
            known = sequence.tokens[length - 1] if length <= len(sequence.tokens) else UNKNOWN
            ints[:, i] = known, sequence.row, length, min(sampling.top_k, 1 << 30)
            floats[:, i] = sampling.temperature, sampling.top_p, sampling.min_p
            if sampling.temperature > 0:
                numbers[i] = uniform(sequence.seed, sequence.length)
        self._buffer.copy_(host, non_blocking=True)


@attrs.frozen(eq=False)
class StaticState:
    """What all programs of a runner share. ``last`` is ``(rows + 1,)``: what each row drew last."""

    model: Decoder
    ops: Ops
    cache: KVCache
    tables: DeviceTables
    last: torch.Tensor


class DecodeProgram:
    """One step of up to ``rows`` sequences in decode: forward, draw, remember.

    After `run`, ``logits`` ``(rows, vocabulary)`` and ``scored`` ``(rows, 2)`` fp64 (token, and 1
    where the logits are finite) hold the results until another program runs.
    """

    logits: torch.Tensor
    scored: torch.Tensor

    def __init__(self, state: StaticState, rows: int) -> None:
        self.rows = rows
        self._state = state
        device = state.model.device
        self._inputs = _Inputs(rows, state.tables.scrap_row, device)
        self._firsts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._step: Callable[[], None] = self._body

    @torch.inference_mode()
    def prepare(self, capture: Capture) -> None:
        """Run once, so that whatever is made on first use exists, then capture."""
        self._inputs.fill(())
        self._body()
        self._step = capture(self._body)

    @torch.inference_mode()
    def run(self, sequences: Items[Sequence]) -> None:
        """Compute the next token of each of *sequences*, in decode."""
        self._state.tables.show(sequences)
        self._inputs.fill(sequences)
        self._step()

    def _body(self) -> None:
        state, inputs = self._state, self._inputs
        owners = inputs.owners.long()
        given = inputs.given.long()
        tokens = torch.where(given < 0, state.last.index_select(0, owners), given)
        hidden = state.model.forward(self._batch(tokens, owners), state.cache)
        self.logits = state.model.logits(hidden)
        drawn = state.ops.draw(self.logits, inputs.params)
        state.last.index_copy_(0, owners, drawn)
        finite = self.logits.amax(-1).isfinite()
        self.scored = torch.stack((drawn.double(), finite.double()), 1)

    def _batch(self, tokens: torch.Tensor, owners: torch.Tensor) -> Batch:
        size = self._state.cache.block_size
        lengths = self._inputs.lengths
        tables = self._state.tables.blocks.index_select(0, owners)
        positions = lengths.long() - 1
        blocks = tables.gather(1, (positions // size)[:, None])[:, 0].long()
        return Batch(
            tokens=tokens,
            positions=positions,
            slots=blocks * size + positions % size,
            tables=tables,
            firsts=self._firsts,
            lengths=lengths,
            decodes=self.rows,
            longest=tables.shape[1] * size,
            draws=None,
            drawn=(),
            chunks=(),
            owners=None,
            make_view=_no_view,
        )


def _no_view(window: int | None) -> View:
    raise NotImplementedError("attention that plans on the host cannot be captured")
