"""Requests in, events out, one step at a time. Belongs to one thread."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable

import attrs
import numpy as np

from cortex.engine.blocks import BlockPool
from cortex.engine.constraint import Constraint
from cortex.engine.faults import is_device_fault, is_out_of_memory
from cortex.engine.frames import let_go_of_tensors
from cortex.engine.request import (
    SEED_LIMIT,
    Embedded,
    Event,
    FirstToken,
    Request,
    RequestFailed,
    TokenEvent,
)
from cortex.engine.runner import Drawn, InFlight, Runner
from cortex.engine.scheduler import Plan, Scheduler
from cortex.engine.sequence import Sequence, Status
from cortex.engine.step_times import StepTimes
from cortex.engine.throttle import Throttle
from cortex.errors import DeviceOutOfMemory, Overloaded


@attrs.frozen
class EngineStats:
    """Gauges first, then counters since the engine was opened; tokens unless said."""

    running: int  # requests
    waiting: int  # requests
    kv_blocks_total: int
    kv_blocks_used: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    steps: int
    out_of_memory: int = 0  # steps that memory was too short for
    expired: int = 0  # requests that waited too long
    step_counts: tuple[int, ...] = ()  # `StepTimes.counts`
    step_seconds: float = 0.0


class Engine:
    """Continuous batching of any number of requests on one device.

    ``max_context`` is the length in tokens of a prompt with its completion; ``weight_bytes`` and
    ``kv_bytes`` are what the tensors take, ``graph_bytes`` what captured programs keep;
    ``measured_weights`` is by how much the device's memory grew when the weights were loaded, None
    where nobody tells. A request that is not begun within *queue_seconds*
    fails with `Overloaded`. ``entropy`` seeds the requests that have no seed. With ``overlap`` a
    step is given to the device before the results of the one before it are looked at, so that a
    GPU does not wait for the host: events come one step later.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        max_batch_tokens: int,
        max_context: int,
        weight_bytes: int,
        measured_weights: int | None = None,
        graph_bytes: int = 0,
        overlap: bool = False,
        queue_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self.max_context = max_context
        self.weight_bytes = weight_bytes
        self.measured_weights = measured_weights
        self.graph_bytes = graph_bytes
        self.kv_bytes = runner.cache.bytes
        self.scheduler = Scheduler(
            BlockPool(runner.cache.blocks, runner.cache.block_size),
            max_batch=max_batch,
            max_batch_tokens=max_batch_tokens,
        )
        if max_context > self.scheduler.max_tokens:
            raise ValueError("the KV cache does not hold one request of the longest context")
        self._runner: Runner | None = runner
        self._overlap = overlap
        self._in_flight: InFlight | None = None
        self._vocab_size = runner.model.config.vocab_size
        self._clock = clock
        self._entropy = entropy
        self._sequences: dict[str, Sequence] = {}
        self._throttle = Throttle(max_batch_tokens)
        self._queue_seconds = queue_seconds
        self._added_at: dict[str, float] = {}  # of those that were never scheduled, oldest first
        self._arrivals = 0
        self._steps = 0
        self._times = StepTimes()
        self._out_of_memory = 0
        self._expired = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0

    def add(self, request: Request) -> None:
        """Queue *request*. Raises ValueError when its id is in use or it can never be run."""
        if self._runner is None:
            raise ValueError("the engine is closed")
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use")
        if len(request.prompt) + (request.pooling is None) > self.max_context:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens; the context is {self.max_context}"
            )
        tokens = (*request.prompt, *(token for token, _ in request.sampling.logit_bias))
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self._vocab_size:
                raise ValueError(f"token {token} is not in the vocabulary of {self._vocab_size}")
        seed = request.sampling.seed
        self._sequences[request.id] = sequence = Sequence(
            request,
            seed=(self._entropy() if seed is None else seed) % SEED_LIMIT,
            limit=min(len(request.prompt) + request.max_tokens, self.max_context),
            arrival=self._arrivals,
        )
        self._arrivals += 1
        self._added_at[request.id] = self._clock()
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> bool:
        """End a request without an event and free its blocks; False when there is none."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        self._added_at.pop(request_id, None)
        self.scheduler.finish(sequence)
        if self._runner is not None:
            self._runner.sampler.forget(sequence)
        return True

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    def step(self) -> list[Event]:
        """Run one step; [] when there is nothing to do.

        A request whose logits or embedding are not finite, or whose constraint fails, fails alone,
        and so does one that waited too long. When memory runs out the steps become smaller for a
        while; a request that not even one token of can be computed fails with `DeviceOutOfMemory`.
        An exception is the engine's: no event was lost, and the same work is planned again should
        the caller dare to go on.
        """
        if self._runner is None:
            return []
        began = self._clock()
        events = self._advance(self._runner)
        self._times.add(self._clock() - began)
        return events + self._expire()

    def _advance(self, runner: Runner) -> list[Event]:
        if self._in_flight is not None and any(s.needs_tokens for s in self.scheduler.running):
            return self._collect()
        launched, events = self._launch(runner)
        if self._in_flight is not None:
            events += self._collect()
        self._in_flight = launched
        if launched is not None and not self._overlap:
            events += self._collect()
        return events

    def _launch(self, runner: Runner) -> tuple[InFlight | None, list[Event]]:
        """Plan a step and give it to the device; None when there is nothing to compute, or not
        enough memory for it. With it, what that brought about."""
        if not self.scheduler.has_work:
            return None, []
        self.scheduler.budget = self._throttle.budget
        plan = self.scheduler.plan()
        now = self._clock()
        for chunk in plan.chunks:
            if chunk.sequence.scheduled_at is None:
                chunk.sequence.scheduled_at = now
                del self._added_at[chunk.sequence.id]
        if not plan.tokens:
            return None, []
        try:
            launched = runner.launch(plan)
        except Exception as error:
            if is_device_fault(error) or not is_out_of_memory(error):
                raise
            return None, self._ran_out(runner, plan, error)
        self._throttle.went_well()
        self._steps += 1
        for chunk in plan.chunks:
            self.scheduler.commit(chunk)
            chunk.sequence.pending += chunk.draws or chunk.pools
        return launched, []

    def _ran_out(self, runner: Runner, plan: Plan, error: Exception) -> list[Event]:
        """Memory did not suffice for *plan*; nothing of it counts. Raises `DeviceOutOfMemory` when
        this goes on and on.

        A step in flight is collected before the next is planned, so that what is tried again is
        built from tokens that the host knows.
        """
        let_go_of_tensors(error)
        runner.reclaim()
        self._out_of_memory += 1
        if not self._throttle.ran_out(plan.tokens):
            raise DeviceOutOfMemory("the device has no memory left to serve the model") from error
        if plan.tokens > 1 or self._in_flight is not None:
            return []
        failure = DeviceOutOfMemory("the device has no memory to go on with this request")
        failure.__cause__ = error
        return [self._fail(plan.chunks[0].sequence, failure)]

    def _expire(self) -> list[Event]:
        """Fail whoever is still not begun and waited too long."""
        now = self._clock() if self._added_at else 0.0
        late: list[tuple[Sequence, float]] = []
        for request_id, since in self._added_at.items():
            if now - since < self._queue_seconds:
                break
            late.append((self._sequences[request_id], now - since))
        self._expired += len(late)
        return [self._fail(sequence, self._overloaded(sequence, s)) for sequence, s in late]

    def _overloaded(self, sequence: Sequence, seconds: float) -> Overloaded:
        pool, running = self.scheduler.pool, len(self.scheduler.running)
        waiting, needed = len(self.scheduler.waiting), pool.needed(len(sequence.tokens))
        return Overloaded(
            f"the request waited {seconds:.0f} s: {running} requests run, {waiting} wait, and of"
            f" the {needed} KV blocks that it needs {pool.free} are free",
            retry_after=float(min(120, 2 * waiting)),
            extras={
                "waited_seconds": round(seconds, 3),
                "running": running,
                "waiting": waiting,
                "kv_blocks_needed": needed,
                "kv_blocks_free": pool.free,
            },
        )

    def _collect(self) -> list[Event]:
        """The events of the step in flight. What ended meanwhile has none."""
        step, self._in_flight = self._in_flight, None
        assert step is not None
        result = step.result()
        events: list[Event] = []
        for chunk in step.plan.chunks:
            sequence = chunk.sequence
            if sequence.status is Status.FINISHED:
                continue
            sequence.prompt_logprobs += result.prompt.get(sequence, [])
            if sequence in result.pooled:
                sequence.pool.add(result.pooled[sequence], chunk.start)
            if chunk.draws:
                events.append(self._take(sequence, result.drawn[sequence]))
            elif chunk.pools:
                events.append(self._embedded(sequence))
        return events

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_blocks_total=scheduler.pool.blocks,
            kv_blocks_used=scheduler.pool.used,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            out_of_memory=self._out_of_memory,
            expired=self._expired,
            step_counts=tuple(self._times.counts),
            step_seconds=self._times.seconds,
        )

    def close(self) -> None:
        """Drop every request, without events, and the tensors."""
        for request_id in list(self._sequences):
            self.abort(request_id)
        self._in_flight = None
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    def _take(self, sequence: Sequence, drawn: Drawn) -> Event:
        """Append the drawn token and say so."""
        if not drawn.finite:
            return self._fail(sequence, ArithmeticError("the model's logits are not finite"))
        if sequence.request.constraint is not None:
            fault = drawn.fault or _refusal(sequence.request.constraint, drawn.token)
            if fault is not None:
                return self._fail(sequence, fault)
        first = self._first(sequence) if sequence.generated == 0 else None
        finish = sequence.append(drawn.token)
        self.scheduler.settle(sequence)
        self._generated_tokens += 1
        if finish is not None:
            self._end(sequence)
        return TokenEvent(sequence.id, drawn.token, finish, drawn.logprob, first)

    def _embedded(self, sequence: Sequence) -> Event:
        """End *sequence* with its embedding."""
        request = sequence.request
        assert request.pooling is not None
        vector = sequence.pool.vector(request.pooling, len(request.prompt))
        if not np.isfinite(vector).all():
            return self._fail(sequence, ArithmeticError("the model's hidden states are not finite"))
        self._prompt_tokens += len(request.prompt)
        self._end(sequence)
        return Embedded(
            request.id, vector, sequence.cached_tokens or 0, sequence.scheduled_at or 0.0
        )

    def _first(self, sequence: Sequence) -> FirstToken:
        self._prompt_tokens += len(sequence.request.prompt)
        logprobs = None
        if sequence.request.sampling.prompt_logprobs:
            logprobs = (None, *sequence.prompt_logprobs)
            sequence.prompt_logprobs = []
        return FirstToken(
            cached_tokens=sequence.cached_tokens or 0,
            scheduled_at=0.0 if sequence.scheduled_at is None else sequence.scheduled_at,
            prompt_logprobs=logprobs,
        )

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self.scheduler.finish(sequence)
        if self._runner is not None:
            self._runner.sampler.forget(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> RequestFailed:
        """End *sequence* with *error*; what it left in the cache is not for others."""
        del self._sequences[sequence.id]
        self._added_at.pop(sequence.id, None)
        blocks = self.scheduler.discard(sequence)
        if self._runner is not None:
            self._runner.sampler.forget(sequence)
            self._runner.clear(blocks)
        return RequestFailed(sequence.id, error)


def _refusal(constraint: Constraint, token: int) -> Exception | None:
    """What *constraint* raises when it is told of *token*."""
    try:
        constraint.accept(token)
    except Exception as exc:
        return exc
    return None
