"""The loop that drives the engines of one device: jobs in, answers and events out.

It knows neither trio nor threads: an inbox gives it jobs, and what it has to say goes out in one
batch a turn. So a thread can host it, or a child process.

One turn takes every job that waits, then makes one step of the next engine that has work. A load
is one long job; between its weight shards the loop serves the other engines, so that their streams
do not stand still, and gives them at most as much time as the load has had.

A job that fails is answered with its error. An engine whose step fails is closed and reported as
dead. A device fault ends it all: from then on every job of every kind is answered with
`DeviceLost`, and no engine is touched again, not even to be closed, because whatever touches a
faulted CUDA context may hang.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from cortex.engine.frames import let_go_of_tensors
from cortex.errors import DeviceLost, InternalError, LoadCancelled
from cortex.neuron.jobs import (
    Abort,
    Add,
    Answer,
    Call,
    Close,
    Died,
    DrivenEngine,
    Faulted,
    Job,
    Open,
    OpenedEngine,
    Output,
    Stats,
    Stepped,
    Stop,
)
from cortex.neuron.pulse import JOB, LOAD, STEP, Pulse
from cortex.neuron.stage_times import StageTimes

RECOVERY_SECONDS = 20.0  # what a client is told to wait for a device that is being recovered


class Inbox(Protocol):
    """Where jobs come from."""

    def take(self, *, wait: bool) -> Job | None:
        """The next job; None when there is none and *wait* is false."""
        ...


def is_fault(exc: BaseException) -> bool:
    """Whether *exc* means that the device is lost: `cortex.engine.faults`, imported when needed."""
    from cortex.engine.faults import is_device_fault  # with torch, which takes its time

    return is_device_fault(exc)


def lost_to(name: str, cause: BaseException | None) -> DeviceLost:
    """The answer to whoever asks something of the faulted device *name*."""
    error = DeviceLost(
        f"the device {name} has faulted and is being recovered", retry_after=RECOVERY_SECONDS
    )
    error.__cause__ = cause
    return error


@attrs.define(eq=False)
class DeviceLoop:
    """Owns the engines of the device *name*.

    *free_memory* is called when tensors were dropped, since allocators keep what they had.
    """

    name: str
    _inbox: Inbox
    _send: Callable[[list[Output]], None]
    _is_fault: Callable[[BaseException], bool] = is_fault
    _clock: Callable[[], float] = time.monotonic
    _free_memory: Callable[[], None] = lambda: None
    pulse: Pulse = attrs.field(factory=Pulse)
    # Set by the host, together with a `Stop` in the inbox, so that a load under way ends too.
    stopping: bool = attrs.field(default=False, init=False)
    _fault: Exception | None = attrs.field(default=None, init=False)
    _engines: dict[int, DrivenEngine] = attrs.field(factory=dict, init=False)
    _rotation: collections.deque[int] = attrs.field(factory=collections.deque, init=False)
    _outputs: list[Output] = attrs.field(factory=list, init=False)
    _touched: set[int] = attrs.field(factory=set, init=False)
    _opening: Open | None = attrs.field(default=None, init=False)
    _put_off: collections.deque[Job] = attrs.field(factory=collections.deque, init=False)
    _ended: bool = attrs.field(default=False, init=False)

    def run(self) -> None:
        """Serve until a `Stop` was answered; then everything left in the inbox is, too."""
        while not self._ended:
            self.turn()
        while (job := self._next_job(wait=False)) is not None:
            self._answer(job, error=DeviceLost(f"the device {self.name} has shut down"))
        self._flush()

    def turn(self) -> None:
        """Every job that waits (or the first to come, when idle), one step, one batch out."""
        idle = not self._has_work()
        if idle:
            self.pulse.rest()
        job = self._next_job(wait=idle)
        while job is not None:
            self._do(job)
            job = None if self._ended else self._next_job(wait=False)
        if not self._ended:
            self._step(self._next_engine())
        self._flush()

    # Jobs

    def _next_job(self, *, wait: bool) -> Job | None:
        if self._put_off:
            return self._put_off.popleft()
        return self._inbox.take(wait=wait)

    def _do(self, job: Job) -> None:
        """Do and answer *job*."""
        self.pulse.at(JOB)
        if isinstance(job, Stop):
            self._shut(job)
        elif self._fault is not None:
            self._answer(job, error=lost_to(self.name, self._fault))
        elif job.cancelled:
            self._answer(job, error=LoadCancelled("cancelled before it began"))
        else:
            try:
                value = self._perform(job)
            except Exception as exc:
                self._job_failed(job, exc)
            else:
                self._answer(job, value)

    def _perform(self, job: Job) -> Any:
        match job:
            case Open():
                return self._open(job)
            case Close():
                return self._close(job.key)
            case Add():
                self._touched.add(job.key)
                return self._engine(job.key).add(job.request)
            case Abort():
                self._touched.add(job.key)
                engine = self._engines.get(job.key)
                return engine is not None and engine.abort(job.request_id)
            case Stats():
                return self._engine(job.key).stats()
            case Call():
                return job.fn()
        raise InternalError(f"a device does not know the job {type(job).__name__}")

    def _engine(self, key: int) -> DrivenEngine:
        engine = self._engines.get(key)
        if engine is None:
            raise DeviceLost("the engine is not open any more")
        return engine

    def _job_failed(self, job: Job, exc: Exception) -> None:
        if self._is_fault(exc):
            self._poison(exc)
        if self._fault is not None:  # a load ends, too, when a step made between its shards faults
            exc = lost_to(self.name, self._fault)
        let_go_of_tensors(exc)
        if isinstance(job, Open):
            self._reclaim()
        self._answer(job, error=exc)

    def _answer(self, job: Job, value: Any = None, error: Exception | None = None) -> None:
        self._outputs.append(Answer(job, value, error))

    # Loads

    def _open(self, job: Open) -> OpenedEngine:
        shares = _Shares(self._clock)
        times = StageTimes(self._clock)
        times.enter("headers")

        def report(stage: str, done: int, total: int) -> None:
            self.pulse.at(LOAD)
            times.enter(stage)
            job.progress = (stage, done, total)

        def cancelled() -> bool:
            if not self._gave_up(job) and shares.others_are_due():
                self._serve_others()
                shares.served()
            self.pulse.at(LOAD)
            return self._gave_up(job)

        self._opening = job
        self.pulse.at(LOAD)
        try:
            engine = job.open(report, cancelled)
        finally:
            self._opening = None
            times.end()
            job.stage_seconds = times.seconds
        if self._gave_up(job) or self._fault is not None:
            if self._fault is None:
                engine.close()
                raise LoadCancelled("cancelled when it had just been loaded")
            raise lost_to(self.name, self._fault)
        self._engines[job.key] = engine
        self._rotation.append(job.key)
        return OpenedEngine(
            engine.max_context,
            engine.kv_bytes,
            engine.weight_bytes,
            engine.measured_weights,
            engine.graph_bytes,
        )

    def _gave_up(self, job: Open) -> bool:
        return job.cancelled or self.stopping or self._fault is not None

    def _serve_others(self) -> None:
        """Within a load: do what other engines' requests need; the rest keeps its order."""
        while (job := self._inbox.take(wait=False)) is not None:
            if isinstance(job, Add | Abort | Stats):
                self._do(job)
            else:
                self._put_off.append(job)
        for _ in range(len(self._rotation)):
            self._step(self._next_engine())
            if self._fault is not None:
                break
        self._flush()

    def _close(self, key: int) -> bool:
        engine = self._engines.pop(key, None)
        if engine is None:
            return False
        self._rotation.remove(key)
        try:
            engine.close()
        finally:
            del engine
            self._reclaim()
        return True

    def _reclaim(self) -> None:
        """Give dropped tensors' memory back to the device."""
        if self._fault is None:
            try:
                self._free_memory()
            except Exception as exc:  # what is not given back is merely not free
                if self._is_fault(exc):
                    self._poison(exc)

    # Steps

    def _has_work(self) -> bool:
        return self._fault is None and any(e.has_work for e in self._engines.values())

    def _next_engine(self) -> int | None:
        """The engine whose turn it is among those with work; it goes to the end of the line."""
        if self._fault is not None:
            return None
        for _ in range(len(self._rotation)):
            key = self._rotation[0]
            self._rotation.rotate(-1)
            if self._engines[key].has_work:
                return key
        return None

    def _step(self, key: int | None) -> None:
        if key is None:
            return
        engine = self._engines[key]
        self.pulse.at(STEP)
        try:
            stepped = Stepped(key, engine.step(), engine.stats())
        except Exception as exc:
            self._engine_failed(key, exc)
        else:
            self._outputs.append(stepped)
            self._touched.discard(key)

    def _engine_failed(self, key: int, exc: Exception) -> None:
        let_go_of_tensors(exc)
        if self._is_fault(exc):
            self._poison(exc)
            return
        try:
            self._close(key)
        except Exception as closing:
            if self._is_fault(closing):
                self._poison(closing)
                return
        self._outputs.append(Died(key, exc))

    def _poison(self, exc: Exception) -> None:
        if self._fault is None:
            self._fault = exc
            self._outputs.append(Faulted(exc))

    # Ends

    def _shut(self, job: Stop) -> None:
        self._ended = True
        if self._fault is None:
            for key in list(self._engines):
                try:
                    self._close(key)
                except Exception as exc:
                    if self._is_fault(exc):
                        self._poison(exc)
                        break
        self._answer(job)

    def _flush(self) -> None:
        """Send everything of this turn at once: one wake-up of the other side."""
        if self._fault is None:
            for key in self._touched:
                engine = self._engines.get(key)
                if engine is not None:
                    self._outputs.append(Stepped(key, (), engine.stats()))
        self._touched.clear()
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._send(outputs)


@attrs.define(eq=False)
class _Shares:
    """Divides time between a load and everything else: the load gets at least half."""

    _clock: Callable[[], float]
    _resumed: float = attrs.field(init=False)
    _paused: float = attrs.field(init=False, default=0.0)
    _others: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self._resumed = self._clock()

    def others_are_due(self) -> bool:
        """Whether the load has run for as long as the others did in their last round."""
        self._paused = self._clock()
        return self._paused - self._resumed >= self._others

    def served(self) -> None:
        self._resumed = self._clock()
        self._others = self._resumed - self._paused
