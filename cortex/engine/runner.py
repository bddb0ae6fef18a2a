"""One step on the device: batch, forward, draw, and one copy of the results to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items

import attrs
import numpy as np
import torch

from cortex.engine.batch import Batch, BatchBuilder
from cortex.engine.cache import KVCache
from cortex.engine.masks import Mask, Masks
from cortex.engine.memory import give_back
from cortex.engine.models.decoder import Decoder
from cortex.engine.pooling import Row
from cortex.engine.request import Pooling, TokenLogprob
from cortex.engine.sampler import Sampler, is_plain
from cortex.engine.scheduler import Chunk, Plan
from cortex.engine.sequence import Sequence
from cortex.engine.static_decode import Capture, DecodeProgram, DeviceTables, StaticState, buckets
from cortex.errors import LoadCancelled

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]

SCORED_ROWS = 64  # prompt rows whose logits exist at a time when their logprobs are asked


@attrs.frozen
class Drawn:
    """The token of one sequence. Not ``finite``: its logits were not, and the token is noise; so it
    is with a ``fault``, which its constraint raised."""

    token: int
    finite: bool
    logprob: TokenLogprob | None
    fault: Exception | None = None


@attrs.frozen
class StepResult:
    """``drawn`` by sequence; ``prompt`` are logprobs of prompt tokens, in order, by sequence;
    ``pooled`` are the rows of chunks that are embedded."""

    drawn: dict[Sequence, Drawn]
    prompt: dict[Sequence, list[TokenLogprob]]
    pooled: dict[Sequence, Row]


@attrs.frozen(eq=False)
class InFlight:
    """A step that was given to the device. ``plan`` is what it computes."""

    plan: Plan
    _drawn: tuple[Sequence, ...]  # in the order of the table's rows, before those of prompts
    _chunks: tuple[Chunk, ...]
    _results: torch.Tensor | None  # flat, on the host; valid once `_copied` has happened
    _scored: int  # of these, the table of scores; then the rows that are pooled
    _best: int | None
    _copied: torch.cuda.Event | None
    _faults: Mapping[int, Exception] = attrs.field(factory=dict)  # by line of those drawn

    def result(self) -> StepResult:
        """Wait for the device. May be asked once."""
        if self._results is None:
            return StepResult({}, {}, {})
        if self._copied is not None:
            self._copied.synchronize()
        flat = self._results.numpy()
        table = flat[: self._scored].reshape(-1, _columns(self._best)).tolist()
        found = _unpacked(self._drawn, self._chunks, table, self._best, flat[self._scored :])
        for line, fault in self._faults.items():
            sequence = self._drawn[line]
            found.drawn[sequence] = attrs.evolve(found.drawn[sequence], fault=fault)
        return found


def _wanted(chunk: Chunk) -> range:
    """The positions of the chunk whose next token is a prompt token with a logprob asked for."""
    sequence = chunk.sequence
    if not sequence.request.sampling.prompt_logprobs or sequence.generated:
        return range(0)
    last = len(sequence.request.prompt) - 1
    return range(chunk.start, min(chunk.start + chunk.count, last))


def _pools(chunk: Chunk) -> bool:
    """Whether the chunk gives a row of its prompt's embedding."""
    return chunk.pools or chunk.sequence.request.pooling is Pooling.MEAN


def pool(hidden: torch.Tensor, chunks: Iterable[Chunk]) -> list[torch.Tensor]:
    """fp64 rows ``(hidden,)`` of those of *chunks* that are embedded, in order (`pooling`)."""
    rows: list[torch.Tensor] = []
    first = 0
    for chunk in chunks:
        if _pools(chunk):
            states = hidden[first : first + chunk.count]
            mean = chunk.sequence.request.pooling is Pooling.MEAN
            rows.append(states.sum(0, dtype=torch.float64) if mean else states[-1].double())
        first += chunk.count
    return rows


def score(logits: torch.Tensor, tokens: torch.Tensor, best: int | None) -> torch.Tensor:
    """Results as fp64 rows: token, finite, then logprob, *best* ids and their logprobs.

    fp64 holds ids and logprobs alike, so that everything a step has to say is one tensor.
    """
    columns = [tokens[:, None].double(), logits.amax(-1, keepdim=True).isfinite().double()]
    if best is not None:
        total = logits.logsumexp(-1, keepdim=True)
        columns.append((logits.gather(1, tokens[:, None]) - total).double())
        if best:
            top = logits.topk(best, dim=-1)
            columns += [top.indices.double(), (top.values - total).double()]
    return torch.cat(columns, 1)


class Runner:
    """Owns the model and the KV cache.

    With *capture*, steps of nothing but decode run as captured programs, once `prepare` has made
    them; all others run operation by operation.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        *,
        max_batch: int,
        max_context: int,
        capture: Capture | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.sampler = Sampler(model.config.vocab_size, model.device)
        self._masks = Masks(model.config.vocab_size, model.device)
        # By row, what was drawn last: the next step begins before the host knows it.
        self._last = torch.zeros(max_batch + 1, dtype=torch.int64, device=model.device)
        blocks_per_row = -(-max_context // cache.block_size)
        self._capture = capture
        self._programs: list[DecodeProgram] = []
        if capture is not None:
            tables = DeviceTables(max_batch, blocks_per_row, cache.scrap_block, model.device)
            state = StaticState(model, model.ops, cache, tables, self._last)
            self._programs = [DecodeProgram(state, rows) for rows in buckets(max_batch)]
        self._builder = BatchBuilder(
            rows=max_batch,
            blocks_per_row=blocks_per_row,
            block_size=cache.block_size,
            null_block=cache.null_block,
            dtype=model.dtype,
            device=model.device,
        )

    @property
    def captures(self) -> bool:
        """Whether steps of decode run as captured programs."""
        return self._capture is not None

    def prepare(self, progress: Progress, cancelled: Cancelled) -> None:
        """Capture the programs. Raises LoadCancelled soon after *cancelled* turned true."""
        if self._capture is None:
            return
        # The largest first: the others find its memory to use again.
        for done, program in enumerate(reversed(self._programs)):
            progress("graphs", done, len(self._programs))
            if cancelled():
                raise LoadCancelled
            program.prepare(self._capture)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> InFlight:
        """Have the device compute the plan's tokens and draw; on a GPU, returns before it has.

        The host synchronises with it in `InFlight.result` alone. Masks of constrained sequences
        are made on helper threads meanwhile, and waited for before the draw.
        """
        if self._programs and not plan.prefills and not any(map(_wanted, plan.decodes)):
            sequences = tuple(chunk.sequence for chunk in plan.decodes)
            with self._masks.filling(sequences) as mask:
                return self._launch_program(plan, sequences, mask)
        batch = self._builder.build(plan)
        with self._masks.filling(batch.drawn) as mask:
            return self._launch_batch(plan, batch, mask)

    def _launch_batch(self, plan: Plan, batch: Batch, mask: Mask | None) -> InFlight:
        if batch.owners is not None:
            drawn = self._last.index_select(0, batch.owners)
            batch.tokens = torch.where(batch.tokens < 0, drawn, batch.tokens)
        hidden = self.model.forward(batch, self.cache)
        best = self._best(batch.drawn, batch.chunks)
        parts: list[torch.Tensor] = []
        if batch.drawn:
            rows = hidden if batch.draws is None else hidden.index_select(0, batch.draws)
            logits = self.model.logits(rows)
            tokens = self.sampler.draw(logits, batch.drawn, mask)
            self._last.index_copy_(0, self._rows_of(batch.drawn), tokens)
            parts.append(score(logits, tokens, best))
        parts += self._prompt_scores(batch, hidden, best)
        table = torch.cat(parts) if parts else None
        pooled = pool(hidden, batch.chunks)
        return self._sent(plan, batch.drawn, batch.chunks, table, best, pooled, mask)

    def _launch_program(
        self, plan: Plan, sequences: tuple[Sequence, ...], mask: Mask | None
    ) -> InFlight:
        """A step of decode alone. What the program does not know of is drawn again from its
        logits."""
        count = len(sequences)
        program = next(program for program in self._programs if program.rows >= count)
        program.run(sequences)
        best = self._best(sequences, ())
        table = program.scored[:count]
        plain = all(map(is_plain, sequences))
        if best is not None or not plain:
            logits, tokens = program.logits[:count], table[:, 0].long()
            if not plain:
                tokens = self.sampler.draw(logits, sequences, mask)
                self._last.index_copy_(0, self._rows_of(sequences), tokens)
            table = score(logits, tokens, best)
        return self._sent(plan, sequences, plan.decodes, table, best, mask=mask)

    def _sent(
        self,
        plan: Plan,
        drawn: tuple[Sequence, ...],
        chunks: tuple[Chunk, ...],
        table: torch.Tensor | None,
        best: int | None,
        pooled: Items[torch.Tensor] = (),
        mask: Mask | None = None,
    ) -> InFlight:
        """The step whose results are *table* and *pooled*, on their way to the host."""
        scored = 0 if table is None else table.numel()
        parts = [part.reshape(-1) for part in (table, *pooled) if part is not None]
        if not parts:
            return InFlight(plan, drawn, chunks, None, 0, best, None)
        results = torch.cat(parts) if len(parts) > 1 else parts[0]
        results = results.to("cpu", non_blocking=True)
        copied = None
        if self.model.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        faults = {} if mask is None else mask.faults
        return InFlight(plan, drawn, chunks, results, scored, best, copied, faults)

    def _best(self, drawn: Items[Sequence], chunks: Items[Chunk]) -> int | None:
        """The widest row of logprobs that a sequence of the step asks for, or None."""
        asked = [s.request.sampling.logprobs for s in drawn]
        asked += [c.sequence.request.sampling.logprobs or 0 for c in chunks if _wanted(c)]
        counts = [count for count in asked if count is not None]
        return min(max(counts), self.model.config.vocab_size) if counts else None

    def _rows_of(self, sequences: Items[Sequence]) -> torch.Tensor:
        rows = torch.tensor([sequence.row for sequence in sequences], dtype=torch.int64)
        return rows.to(self.model.device, non_blocking=True)

    def reclaim(self) -> None:
        """Give what torch keeps for itself back to the device: memory ran out."""
        give_back()

    @torch.inference_mode()
    def clear(self, blocks: Iterable[int]) -> None:
        self.cache.clear(list(blocks))

    def close(self) -> None:
        """No step follows."""
        self._masks.close()

    def _prompt_scores(
        self, batch: Batch, hidden: torch.Tensor, best: int | None
    ) -> list[torch.Tensor]:
        parts: list[torch.Tensor] = []
        first = 0
        for chunk in batch.chunks:
            wanted = _wanted(chunk)
            for start in range(wanted.start, wanted.stop, SCORED_ROWS):
                stop = min(start + SCORED_ROWS, wanted.stop)
                row = first + start - chunk.start
                logits = self.model.logits(hidden[row : row + stop - start])
                following = chunk.sequence.tokens[start + 1 : stop + 1]
                tokens = torch.tensor(following, dtype=torch.int64).to(logits.device)
                parts.append(score(logits, tokens, best))
            first += chunk.count
        return parts


def _columns(best: int | None) -> int:
    """How many `score` gives."""
    return 2 if best is None else 3 + 2 * best


def _logprob(row: list[float], count: int, best: int) -> TokenLogprob:
    ids, values = row[3 : 3 + count], row[3 + best : 3 + best + count]
    top = tuple((int(token), value) for token, value in zip(ids, values, strict=True))
    return TokenLogprob(int(row[0]), row[2], top)


def _unpacked(
    sequences: Items[Sequence],
    chunks: Items[Chunk],
    table: list[list[float]],
    best: int | None,
    pooled: Row,
) -> StepResult:
    drawn: dict[Sequence, Drawn] = {}
    for sequence, row in zip(sequences, table, strict=False):
        asked = sequence.request.sampling.logprobs
        logprob = None
        if asked is not None and best is not None:
            logprob = _logprob(row, min(asked, best), best)
        drawn[sequence] = Drawn(int(row[0]), row[1] == 1.0, logprob)
    prompt: dict[Sequence, list[TokenLogprob]] = {}
    rest = iter(table[len(sequences) :])
    for chunk in chunks:
        wanted = _wanted(chunk)
        if wanted:
            count = min(chunk.sequence.request.sampling.logprobs or 0, best or 0)
            rows = [next(rest) for _ in wanted]
            prompt[chunk.sequence] = [_logprob(row, count, best or 0) for row in rows]
    embedded = [chunk.sequence for chunk in chunks if _pools(chunk)]
    vectors = np.split(pooled, len(embedded)) if embedded else []
    return StepResult(drawn, prompt, dict(zip(embedded, vectors, strict=True)))
