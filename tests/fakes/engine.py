"""An engine without a model, and checkpoints without files, with the real ones' interfaces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np

from cortex.engine.engine import EngineStats
from cortex.engine.request import (
    Embedded,
    Event,
    FinishReason,
    FirstToken,
    Pooling,
    Request,
    SamplingParams,
    TokenEvent,
)
from cortex.errors import LoadCancelled
from cortex.neuron.checkpoints import LoadPlan, Room, Wish
from cortex.neuron.jobs import DrivenEngine, IsCancelled, ReportProgress

MIB = 1 << 20
WAIT = 10.0  # seconds a gate is waited for at most


class FakeDeviceFault(Exception):
    """What `is_fake_fault` takes for a device fault."""


def is_fake_fault(exc: BaseException) -> bool:
    """Like the real classification: anywhere in the chain."""
    current: BaseException | None = exc
    while current is not None:
        if isinstance(current, FakeDeviceFault):
            return True
        current = current.__cause__
    return False


@attrs.define(eq=False, slots=False)
class FakeEngine:
    """Repeats each prompt, token by token, for every request in each step.

    ``step_error`` is raised by the next step. With ``gate`` a step waits until it is set.
    ``history`` tells what was done, ``threads`` on which threads.
    """

    max_context: int = 1000
    kv_bytes: int = 8 * MIB
    weight_bytes: int = 4 * MIB
    measured_weights: int | None = 4 * MIB
    graph_bytes: int = 0
    step_error: Exception | None = None
    close_error: Exception | None = None
    gate: threading.Event | None = None
    in_step: threading.Event = attrs.field(factory=threading.Event)
    closed: bool = False
    history: list[str] = attrs.field(factory=list)
    threads: set[str] = attrs.field(factory=set)
    running: dict[str, tuple[Request, int]] = attrs.field(factory=dict)
    steps: int = 0

    def _note(self, what: str) -> None:
        assert not self.closed, f"{what} after close"
        self.history.append(what)
        self.threads.add(threading.current_thread().name)

    def add(self, request: Request) -> None:
        self._note(f"add {request.id}")
        if request.id in self.running:
            raise ValueError(f"request id {request.id!r} is in use")
        self.running[request.id] = (request, 0)

    def abort(self, request_id: str) -> bool:
        self._note(f"abort {request_id}")
        return self.running.pop(request_id, None) is not None

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Event]:
        self._note("step")
        self.in_step.set()
        if self.gate is not None:
            assert self.gate.wait(WAIT)
        if self.step_error is not None:
            error, self.step_error = self.step_error, None
            raise error
        self.steps += 1
        return [self._next(request, done) for request, done in list(self.running.values())]

    def _next(self, request: Request, done: int) -> Event:
        if request.pooling is not None:
            del self.running[request.id]
            return Embedded(request.id, self.vector(request), cached_tokens=1, scheduled_at=0.0)
        last = done + 1 == min(request.max_tokens, self.max_context - len(request.prompt))
        if last:
            del self.running[request.id]
        else:
            self.running[request.id] = (request, done + 1)
        return TokenEvent(
            request.id,
            request.prompt[done % len(request.prompt)],
            FinishReason.LENGTH if last else None,
            None,
            FirstToken(0, 0.0, None) if done == 0 else None,
        )

    def vector(self, request: Request) -> np.ndarray:
        """The embedding of a prompt: its length and its first token, by the pooling asked for."""
        numbers = [len(request.prompt), request.prompt[0], 0, request.pooling == Pooling.MEAN]
        return np.array(numbers, dtype=np.float32)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running),
            waiting=0,
            kv_blocks_total=100,
            kv_blocks_used=len(self.running),
            prefix_hit_tokens=0,
            prefix_query_tokens=0,
            prompt_tokens=0,
            generated_tokens=0,
            preemptions=0,
            steps=self.steps,
        )

    def close(self) -> None:
        self._note("close")
        self.closed = True
        if self.close_error is not None:
            raise self.close_error


def _new_engine(_: Path) -> FakeEngine:
    return FakeEngine()


@attrs.define(eq=False)
class FakeCheckpoints:
    """`Checkpoints` whose models take ``weights`` and ``kv`` bytes and load in ``shards`` shards.

    A directory's name is in ``plan_errors`` or ``open_errors`` when that is to fail. With ``gate``
    set, a load stands still before each shard until it is, polling for its cancellation.
    """

    weights: int = 4 * MIB
    kv: int = 8 * MIB
    shards: int = 4
    gate: threading.Event | None = None
    make: Callable[[Path], FakeEngine] = _new_engine
    plan_errors: dict[str, Exception] = attrs.field(factory=dict)
    open_errors: dict[str, Exception] = attrs.field(factory=dict)
    engines: dict[str, list[FakeEngine]] = attrs.field(factory=dict)
    opens: list[str] = attrs.field(factory=list)
    wishes: list[Wish] = attrs.field(factory=list)
    loading: threading.Event = attrs.field(factory=threading.Event)
    cancellations: list[str] = attrs.field(factory=list)

    def plan(self, directory: Path, wish: Wish, room: Room) -> LoadPlan:
        if directory.name in self.plan_errors:
            raise self.plan_errors[directory.name]
        return LoadPlan(
            rows={"weights": self.weights, "kv": self.kv, "workspace": MIB},
            context=1000,
            trained_context=4096,
            kv_bytes_per_token=1024,
            architecture="qwen3",
            dtype=wish.dtype or "float32",
        )

    def open(
        self,
        directory: Path,
        wish: Wish,
        plan: LoadPlan,
        device: str,
        progress: ReportProgress,
        cancelled: IsCancelled,
    ) -> DrivenEngine:
        name = directory.name
        self.opens.append(name)
        self.wishes.append(wish)
        if name in self.open_errors:
            raise self.open_errors[name]
        for shard in range(self.shards):
            progress("weights", shard * self.weights // self.shards, self.weights)
            self.loading.set()
            self._shard(name, cancelled)
        engine = self.make(directory)
        self.engines.setdefault(name, []).append(engine)
        return engine

    def _shard(self, name: str, cancelled: IsCancelled) -> None:
        while True:
            if cancelled():
                self.cancellations.append(name)
                raise LoadCancelled
            if self.gate is None or self.gate.wait(0.001):
                return


def request(name: str, *, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 3) -> Request:
    """A greedy request called *name*."""
    return Request(name, prompt, SamplingParams(temperature=0.0), max_tokens)
