"""Which tokens are computed in the next step. No torch, no clock.

One budget of tokens a step over all sequences with tokens left to compute: there is no prefill
phase and no decode phase. Sequences in decode come first, chunks of prompts fill the rest, and the
waiting are admitted while rows, blocks and budget last: a sequence needs the blocks of all its
tokens at once, beside what it and the running ones are going to need soon. When blocks run out all
the same, the newest sequence of the lowest priority is preempted: it gives its blocks back and is
computed again later, mostly out of the prefix cache.
"""

from __future__ import annotations

from bisect import insort

import attrs

from cortex.engine.blocks import BlockPool
from cortex.engine.sequence import Sequence, Status
from cortex.engine.waiting import WaitingQueue

# Tokens of each completion that an admission leaves room for. Most completions end before their
# limit: to reserve all of it runs them one by one, to reserve nothing preempts them. Simulated
# (tests/engine/test_admission.py), 64 tokens keep the throughput that no reserve has, within 2 %,
# with less than half of its preemptions; 256 tokens lose 6 to 12 %.
LOOK_AHEAD = 64


@attrs.frozen
class Chunk:
    """Tokens ``start`` to ``start + count`` of a sequence; ``draws`` when a token follows,
    ``pools`` when they complete a prompt that is to be embedded."""

    sequence: Sequence
    start: int
    count: int
    draws: bool
    pools: bool = False


@attrs.frozen
class Plan:
    """One step: sequences in decode, one token each, then chunks of prompts."""

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(chunk.count for chunk in self.prefills)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Sorts the urgent and the old first."""
    return (-sequence.request.priority, sequence.arrival)


class Scheduler:
    """Owns sequences, their blocks and their rows.

    Every sequence must fit the pool alone (`max_tokens`); the engine refuses others. Then the
    first by rank always advances, so that every sequence ends. ``budget`` is the step's, from 1 to
    ``max_batch_tokens``; it may be changed between two plans.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch: int,
        max_batch_tokens: int,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        if max_batch < 1 or max_batch_tokens < max_batch:
            raise ValueError("a step needs a budget of at least one token a sequence")
        self.pool = pool
        self.max_batch = max_batch
        self.max_batch_tokens = max_batch_tokens
        self.budget = max_batch_tokens
        self.look_ahead = look_ahead
        self.running: list[Sequence] = []  # by rank
        self.waiting = WaitingQueue()
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.prefix_query_tokens = 0
        self._rows = list(range(max_batch - 1, -1, -1))

    @property
    def max_tokens(self) -> int:
        """Tokens with KV that one sequence alone can have."""
        return self.pool.blocks * self.pool.block_size

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.push(sequence)

    def plan(self) -> Plan:
        """The next step. Blocks are given out by this; nothing counts as computed until `commit`.

        A plan that is not carried out may be dropped: the next one plans its tokens again.
        """
        budget = self.budget
        chosen: dict[Sequence, int] = {}
        preempted: list[Sequence] = []
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            if budget == 0:
                break
            if sequence.status is not Status.RUNNING or sequence.awaits_end:
                continue  # preempted by one before it, or about to end
            count = min(sequence.remaining, budget)
            preempted += self._make_room(sequence, count)
            if sequence.status is Status.RUNNING:
                chosen[sequence] = count
                budget -= count
        while not preempted and budget > 0 and self._rows and len(self.waiting):
            admitted = self._admit(self.waiting.head())
            if admitted is None:
                break
            chosen[admitted] = min(admitted.remaining, budget)
            budget -= chosen[admitted]
        return self._arranged(chosen, preempted)

    def commit(self, chunk: Chunk) -> None:
        """The chunk's KV is valid for every later step; blocks that it filled can be found by
        others from now on, or from when their last token is known (`settle`)."""
        chunk.sequence.computed = chunk.start + chunk.count
        self.settle(chunk.sequence)

    def settle(self, sequence: Sequence) -> None:
        """A token of *sequence* has become known: let others find the blocks that are full."""
        size = self.pool.block_size
        known = min(sequence.computed, len(sequence.tokens)) // size
        for index in range(sequence.registered, known):
            self.pool.register(sequence.blocks[index], sequence.block_digest(index, size))
        sequence.registered = max(sequence.registered, known)

    def finish(self, sequence: Sequence) -> None:
        """Give back whatever *sequence* holds, running or waiting; it is over."""
        if sequence.status is Status.RUNNING:
            self._stop_running(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def discard(self, sequence: Sequence) -> list[int]:
        """`finish`, and nothing of it stays in the prefix cache. The blocks it alone held."""
        blocks = list(sequence.blocks)
        for block in blocks:
            self.pool.forget(block)
        self.finish(sequence)
        return [block for block in blocks if not self.pool.references(block)]

    def _make_room(self, sequence: Sequence, count: int) -> list[Sequence]:
        """Blocks for *count* more tokens of *sequence*; who was preempted, perhaps itself.

        Only decode needs more than it was admitted with, and decode is planned by rank: whoever
        is preempted is not yet part of the plan.
        """
        victims: list[Sequence] = []
        missing = self.pool.needed(sequence.computed + count) - len(sequence.blocks)
        while missing > self.pool.free:
            victim = self.running[-1]
            self._stop_running(victim)
            victim.status = Status.WAITING
            victim.computed = 0
            victim.prompt_logprobs.clear()
            victim.preemptions += 1
            self.preemptions += 1
            self.waiting.push_preempted(victim)
            victims.append(victim)
            if victim is sequence:
                return victims
        if missing > 0:
            sequence.blocks += self.pool.allocate(missing)
        return victims

    def _admit(self, sequence: Sequence) -> Sequence | None:
        """Let the head of the queue run, if the blocks for it are there; else None.

        Alone it always runs: its tokens fit the pool, and what follows them does at its limit.
        """
        size = self.pool.block_size
        if sequence.pending:
            return None  # preempted while its token was on the way: that comes first
        hits = self._prefix(sequence)
        if self._will_be_cached(sequence, len(hits)):
            return None
        missing = self.pool.needed(len(sequence.tokens)) - len(hits)
        taken = missing + self.pool.free_among(hits)
        reserved = sum(self._outlook(other) for other in (*self.running, sequence))
        if taken + (reserved if self.running else 0) > self.pool.free:
            return None
        self.waiting.pop()
        self.pool.hold(hits)
        sequence.blocks = hits + self.pool.allocate(missing)
        sequence.computed = len(hits) * size
        sequence.registered = len(hits)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.prefix_hit_tokens += sequence.computed
            self.prefix_query_tokens += len(sequence.tokens)
        sequence.row = self._rows.pop()
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_rank)
        return sequence

    def _outlook(self, sequence: Sequence) -> int:
        """Blocks that *sequence* needs soon, beyond those of the tokens it has."""
        tokens = sequence.length
        soon = max(tokens, min(tokens + self.look_ahead, sequence.limit - 1))  # the last has no KV
        return self.pool.needed(soon) - self.pool.needed(tokens)

    def _prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its prefix, one token short of all, since one must be computed."""
        if sequence.needs_every_position:
            return []
        size = self.pool.block_size
        full = (len(sequence.tokens) - 1) // size
        return self.pool.match(sequence.block_digest(i, size) for i in range(full))

    def _will_be_cached(self, sequence: Sequence, index: int) -> bool:
        """Whether somebody computes the very block that *sequence* would compute first.

        Then it waits for it: the choices of one prompt cost one prefill.
        """
        size = self.pool.block_size
        if index >= (len(sequence.tokens) - 1) // size:
            return False
        if sequence.needs_every_position:
            return False
        digest = sequence.block_digest(index, size)
        return any(
            other.computed // size <= index < len(other.tokens) // size
            and other.block_digest(index, size) == digest
            for other in self.running
            if other.remaining > 1
        )

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.registered = 0
        self._rows.append(sequence.row)
        sequence.row = -1

    @staticmethod
    def _arranged(chosen: dict[Sequence, int], preempted: list[Sequence]) -> Plan:
        decodes: list[Chunk] = []
        prefills: list[Chunk] = []
        for sequence, count in chosen.items():
            whole, pooled = count == sequence.remaining, sequence.request.pooling is not None
            draws, pools = whole and not pooled, whole and pooled
            chunk = Chunk(sequence, sequence.computed, count, draws, pools)
            (decodes if count == 1 and draws else prefills).append(chunk)
        return Plan(tuple(decodes), tuple(prefills), tuple(preempted))
