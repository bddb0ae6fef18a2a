"""A scheduler driven without a model: KV is what a block's slot was last written with."""

from __future__ import annotations

from collections import Counter

from cortex.engine.blocks import BlockPool
from cortex.engine.request import Pooling, Request, SamplingParams
from cortex.engine.scheduler import LOOK_AHEAD, Plan, Scheduler
from cortex.engine.sequence import Sequence, Status

GREEDY = SamplingParams(temperature=0.0)


class Machine:
    """Carries plans out and checks, on every step, what must hold of any of them.

    A slot of a block holds the whole prefix that a real one depends on, so that a wrong hit, a
    block given to two, or a write into a shared one shows. With ``overlap`` the tokens of a step
    become known after the next one was planned and computed.
    """

    def __init__(
        self,
        *,
        blocks: int,
        block_size: int,
        max_batch: int,
        max_batch_tokens: int,
        overlap: bool = False,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        self.pool = BlockPool(blocks, block_size)
        self.scheduler = Scheduler(
            self.pool,
            max_batch=max_batch,
            max_batch_tokens=max_batch_tokens,
            look_ahead=look_ahead,
        )
        self.live: dict[str, Sequence] = {}
        self.finished: list[str] = []
        self.trace: list[tuple[tuple[str, int, int, bool], ...]] = []
        self._overlap = overlap
        self._in_flight: list[tuple[Sequence, int]] = []  # drawn, not known to the sequence yet
        self._slots: dict[tuple[int, int], tuple[bytes, tuple[int, ...]]] = {}
        self._arrivals = 0

    def add(
        self,
        prompt: tuple[int, ...],
        max_tokens: int = 1,
        *,
        caller: str = "",
        priority: int = 0,
        salt: bytes = b"",
        sampling: SamplingParams = GREEDY,
        pooling: Pooling | None = None,
    ) -> Sequence:
        """A request that is cut to what the pool holds."""
        limit = min(len(prompt) + max_tokens, self.scheduler.max_tokens)
        prompt = prompt[: max(1, limit - 1)]
        request = Request(
            str(self._arrivals),
            prompt,
            sampling,
            max_tokens,
            caller=caller,
            priority=priority,
            salt=salt,
            pooling=pooling,
        )
        sequence = Sequence(request, seed=0, limit=max(limit, 2), arrival=self._arrivals)
        self._arrivals += 1
        self.live[sequence.id] = sequence
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        self.scheduler.finish(self.live.pop(sequence.id))
        self.check()

    def step(self) -> Plan:
        """Plan, check, write, commit, draw."""
        arrived, self._in_flight = self._in_flight, []
        if any(sequence.needs_tokens for sequence in self.scheduler.running):
            self._deliver(arrived)
            arrived = []
        had_work = any(not s.awaits_end for s in self.scheduler.running)
        had_work = had_work or any(not s.pending for s in self._waiting())
        before = self._known(arrived)
        plan = self.scheduler.plan()
        self._check_plan(plan, had_work)
        for chunk in plan.chunks:
            tokens = [*chunk.sequence.tokens, *before.get(chunk.sequence, ())]
            self._compute(chunk.sequence, tokens, chunk.start, chunk.count)
            self.scheduler.commit(chunk)
            if chunk.draws:
                chunk.sequence.pending += 1
                self._in_flight.append((chunk.sequence, sum(tokens) % 3))
            if chunk.pools:
                chunk.sequence.pending += 1
                self._in_flight.append((chunk.sequence, 0))
        self._deliver(arrived)
        if not self._overlap:
            arrived, self._in_flight = self._in_flight, []
            self._deliver(arrived)
        self.trace.append(tuple((c.sequence.id, c.start, c.count, c.draws) for c in plan.chunks))
        self.check()
        return plan

    def drain(self, limit: int) -> int:
        """Steps until nobody is left; AssertionError beyond *limit*."""
        for count in range(limit):
            if not self.scheduler.has_work:
                self._deliver(self._in_flight)
                assert not self.live
                return count
            self.step()
        raise AssertionError(f"{len(self.live)} sequences are left after {limit} steps")

    def check(self) -> None:
        """Whatever happened: counts, rows and blocks agree."""
        self.pool.check_integrity()
        running = self.scheduler.running
        held = Counter(block for sequence in running for block in sequence.blocks)
        for block in range(self.pool.blocks):
            assert self.pool.references(block) == held[block]
        rows = [sequence.row for sequence in running]
        assert len(set(rows)) == len(rows) <= self.scheduler.max_batch
        assert all(0 <= row < self.scheduler.max_batch for row in rows)
        states = Counter(sequence.status for sequence in self.live.values())
        assert states[Status.RUNNING] == len(running)
        assert states[Status.WAITING] == len(self.scheduler.waiting)
        assert states[Status.FINISHED] == 0
        for sequence in self.live.values():
            if sequence.status is Status.WAITING:
                assert (sequence.computed, sequence.blocks, sequence.row) == (0, [], -1)
        ranks = [(-s.request.priority, s.arrival) for s in running]
        assert ranks == sorted(ranks)

    def _check_plan(self, plan: Plan, had_work: bool) -> None:
        assert plan.tokens <= self.scheduler.max_batch_tokens
        if self._overlap:  # a plan may be all preemption, or wait for who is about to end
            assert had_work or not plan.tokens, "progress without work"
        else:
            assert (plan.tokens > 0) == had_work, "work without progress"
        planned = [chunk.sequence for chunk in plan.chunks]
        assert len(set(planned)) == len(planned)
        assert not set(planned) & set(plan.preempted)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.status is Status.RUNNING
            assert chunk.start == sequence.computed
            assert 1 <= chunk.count <= sequence.remaining
            whole, pooled = chunk.count == sequence.remaining, sequence.request.pooling is not None
            assert (chunk.draws, chunk.pools) == (whole and not pooled, whole and pooled)
            assert self.pool.needed(chunk.start + chunk.count) <= len(sequence.blocks)
        assert all(chunk.count == 1 and chunk.draws for chunk in plan.decodes)
        decoding = [
            s
            for s in self.scheduler.running
            if s.remaining == 1 and not s.awaits_end and s.request.pooling is None
        ]
        assert set(decoding) <= {chunk.sequence for chunk in plan.decodes}, "decode was delayed"

    def _waiting(self) -> list[Sequence]:
        return [s for s in self.live.values() if s.status is Status.WAITING]

    @staticmethod
    def _known(arrived: list[tuple[Sequence, int]]) -> dict[Sequence, tuple[int, ...]]:
        """What the device knows that the host does not."""
        return {sequence: (token,) for sequence, token in arrived}

    def _compute(self, sequence: Sequence, tokens: list[int], start: int, count: int) -> None:
        size, salt = self.pool.block_size, sequence.request.salt
        for position in range(start + count):
            slot = (sequence.blocks[position // size], position % size)
            value = (salt, tuple(tokens[: position + 1]))
            assert len(tokens) > position
            if position < start:
                assert self._slots[slot] == value, "what lies in the cache is not its prefix"
            else:
                assert self.pool.references(slot[0]) == 1, "a shared block is written"
                self._slots[slot] = value

    def _deliver(self, arrived: list[tuple[Sequence, int]]) -> None:
        for sequence, token in arrived:
            if sequence.status is Status.FINISHED:
                continue
            ended = sequence.request.pooling is not None
            if not ended:
                ended = sequence.append(token) is not None
                self.scheduler.settle(sequence)
            if ended:
                del self.live[sequence.id]
                self.finished.append(sequence.id)
                self.scheduler.finish(sequence)
