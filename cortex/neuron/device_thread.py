"""The device thread: the one thread of this process that touches its accelerator.

It hosts a `DeviceLoop`. Jobs go in through a thread-safe queue, on which the idle thread sleeps;
what comes out of a turn of the loop wakes the trio thread once. Everything public here belongs to
the trio thread.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from cortex.engine.request import Event
from cortex.errors import DeviceLost
from cortex.neuron.device_loop import DeviceLoop, is_fault, lost_to
from cortex.neuron.jobs import Answer, Died, Faulted, Job, Output, Stepped, Stop
from cortex.neuron.pulse import Pulse
from cortex.service import logs

if TYPE_CHECKING:
    from cortex.engine.engine import EngineStats

log = logs.get("neuron.device")

# How long a thread that was told to stop may finish its step or shard before it is left behind.
GRACE_SECONDS = 10.0

Reply = Callable[[Any, Exception | None], None]


class EngineSink(Protocol):
    """Who hears of one engine. Called in the trio thread; must not raise or block."""

    def deliver(self, events: Sequence[Event], stats: EngineStats) -> None: ...

    def died(self, error: Exception) -> None:
        """The engine has failed and is closed."""

    def lost(self, error: Exception) -> None:
        """The device is gone, and the engine with it."""


class _Queue:
    """A `device_loop.Inbox` that any thread may put into."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def put(self, job: Job) -> None:
        self._jobs.put(job)

    def take(self, *, wait: bool) -> Job | None:
        try:
            return self._jobs.get(block=wait)
        except queue.Empty:
            return None


def _nothing() -> None:
    pass


def _ignore(_: Exception) -> None:
    pass


@attrs.define(eq=False)
class DeviceThread:
    """One device's thread, for the life of the process.

    ``name`` is the thread's name, also for the operating system (``cuda-dev-0``). *prepare* runs on
    the thread before anything else, *free_memory* whenever an engine was dropped. *on_fault* is
    called once, in the trio thread, when the device
    has faulted: by then every open engine and every waiting job has been told.
    """

    name: str
    _prepare: Callable[[], None] = _nothing
    on_fault: Callable[[Exception], None] = _ignore
    _is_fault: Callable[[BaseException], bool] = is_fault
    _grace: float = GRACE_SECONDS
    _free_memory: Callable[[], None] = _nothing
    _pulse: Pulse = attrs.field(factory=Pulse)
    _queue: _Queue = attrs.field(factory=_Queue, init=False)
    _unanswered: dict[Job, Reply | None] = attrs.field(factory=dict, init=False)
    _sinks: dict[int, EngineSink] = attrs.field(factory=dict, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _fault: Exception | None = attrs.field(default=None, init=False)

    @property
    def fault(self) -> Exception | None:
        """What took the device from this process; None while all is well."""
        return self._fault

    @property
    def stuck(self) -> str | None:
        """In what the thread has been stuck, and for how long; None while it gets on, and once the
        device is lost, which has its own end."""
        return None if self._fault is not None else self._pulse.stuck()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The life of the thread: until cancelled. Raises what the loop itself fails with.

        Cancelled, it stops the load or step under way at its next shard or end, answers everything,
        and leaves the thread behind when that takes longer than the grace period.
        """
        loop = DeviceLoop(
            self.name,
            self._queue,
            self._sender(),
            self._is_fault,
            free_memory=self._free_memory,
            pulse=self._pulse,
        )
        hosting = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._host, loop, hosting, name=self.name)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    loop.stopping = True
                    self._queue.put(Stop())
                    hosting.deadline = trio.current_time() + self._grace
        finally:
            self._ended = True
            self._give_up(DeviceLost(f"the device {self.name} has shut down"))

    async def _host(self, loop: DeviceLoop, hosting: trio.CancelScope) -> None:
        with hosting:
            await trio.to_thread.run_sync(
                self._main,
                loop,
                thread_name=self.name,
                limiter=trio.CapacityLimiter(1),  # the default one is shared with short errands
                abandon_on_cancel=True,
            )
        if hosting.cancelled_caught:
            log.error("thread left behind", device=self.name, waited=self._grace)

    def _main(self, loop: DeviceLoop) -> None:
        self._prepare()
        loop.run()

    def _sender(self) -> Callable[[list[Output]], None]:
        """Called in the device thread: hand a turn's outputs over, waking trio once."""
        token = trio.lowlevel.current_trio_token()

        def send(outputs: list[Output]) -> None:
            # A thread that was left behind at shutdown may find that nobody listens any more.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._receive, outputs)

        return send

    # Jobs in

    def submit(self, job: Job, reply: Reply | None = None) -> None:
        """Put *job* in line; *reply* gets its value or error, once, in the trio thread.

        After a fault or the end it is called at once, with `DeviceLost`.
        """
        if self._fault is not None:
            _reply(reply, None, lost_to(self.name, self._fault))
        elif self._ended:
            _reply(reply, None, DeviceLost(f"the device {self.name} has shut down"))
        else:
            self._unanswered[job] = reply
            self._queue.put(job)

    async def ask(self, job: Job, *, cancel_when_left: bool = False) -> Any:
        """What *job* is answered with, or its error raised.

        A cancelled caller leaves at once and the answer is dropped; the job runs all the same,
        unless *cancel_when_left* sets its cancel flag.
        """
        answered = trio.Event()
        answer: list[Any] = []

        def reply(value: Any, error: Exception | None) -> None:
            answer.extend((value, error))
            answered.set()

        self.submit(job, reply)
        try:
            await answered.wait()
        except trio.Cancelled:
            job.cancelled = job.cancelled or cancel_when_left
            raise
        value, error = answer
        if error is not None:
            raise error
        return value

    def declare_lost(self, error: Exception) -> None:
        """Treat the device as faulted although its thread has not said so (it may be stuck)."""
        if self._fault is None and not self._ended:
            self._poisoned(error)

    # Outputs out

    def attach(self, key: int, sink: EngineSink) -> None:
        """Let *sink* hear of the engine opened under *key*."""
        self._sinks[key] = sink

    def detach(self, key: int) -> None:
        self._sinks.pop(key, None)

    def _receive(self, outputs: list[Output]) -> None:
        # An exception in here would be trio's internal error, and the end of every stream.
        for output in outputs:
            try:
                self._dispatch(output)
            except Exception as exc:
                log.error("output not delivered", exc=exc, device=self.name)

    def _dispatch(self, output: Output) -> None:
        match output:
            case Answer():
                _reply(self._unanswered.pop(output.job, None), output.value, output.error)
            case Stepped():
                sink = self._sinks.get(output.key)
                if sink is not None:
                    sink.deliver(output.events, output.stats)
            case Died():
                sink = self._sinks.pop(output.key, None)
                if sink is not None:
                    sink.died(output.error)
            case Faulted():
                if self._fault is None:
                    self._poisoned(output.error)

    def _poisoned(self, error: Exception) -> None:
        log.error("device fault", exc=error, device=self.name)
        self._fault = error
        self._give_up(lost_to(self.name, error))
        self.on_fault(error)

    def _give_up(self, error: Exception) -> None:
        """Tell everyone who still waits for this device that it is gone."""
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.lost(error)
        unanswered, self._unanswered = self._unanswered, {}
        for reply in unanswered.values():
            _reply(reply, None, DeviceLost(str(error), retry_after=_hint(error)))


def _hint(error: Exception) -> float | None:
    return getattr(error, "retry_after", None)


def _reply(reply: Reply | None, value: Any, error: Exception | None) -> None:
    if reply is not None:
        reply(value, error)
