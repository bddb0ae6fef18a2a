"""The pulls of this neuron: one owner. One for each source at a time, however many ask for it.

A pull belongs to the owner's nursery, not to who asked: it goes on when all have left. A few run at
a time, the others wait. Those that have ended stay visible for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from cortex.errors import (
    Conflict,
    CortexError,
    Draining,
    InternalError,
    ModelNotFound,
    Overloaded,
    Unavailable,
    clip,
)
from cortex.neuron.hub_files import Pulled
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.pull_record import PullRecord
from cortex.service import logs
from cortex.wire import neuron as wire

AT_A_TIME = 2
MOST = 64  # under way or waiting
KEPT = 64  # that have ended
KEPT_SECONDS = 600.0

log = logs.get("neuron.pulls")


class Puller(Protocol):
    """Where files come from (`cortex.neuron.sources.Sources`)."""

    async def pull(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        verify: bool = False,
    ) -> Pulled: ...


def _unheard(pull: wire.Pull) -> None:
    pass


@attrs.define(eq=False)
class _Flight:
    record: PullRecord
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    landed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def under_way(self) -> bool:
        return not self.landed.is_set()

    @property
    def may_be_joined(self) -> bool:
        """Not one that is being cancelled: its end is not what is asked for."""
        return self.under_way and not self.scope.cancel_called


@attrs.define(eq=False)
class Pulls:
    """*on_ended* hears of each pull how it ended. *clock* is monotonic."""

    _sources: Puller
    on_ended: Callable[[wire.Pull], None] = _unheard
    _clock: Callable[[], float] = time.monotonic
    _flights: list[_Flight] = attrs.field(factory=list, init=False)
    _turns: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(AT_A_TIME), init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there until cancelled; pulls under way end with it, and what came is kept."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._closed = True

    def states(self) -> tuple[wire.Pull, ...]:
        """Every pull that is under way, or ended lately, in the order in which they began."""
        self._forget()
        return tuple(flight.record.state() for flight in self._flights)

    @property
    def under_way(self) -> int:
        return sum(flight.under_way for flight in self._flights)

    def start(self, request: wire.PullRequest) -> wire.Pull:
        """Begin a pull, or find the one of the same source that is under way."""
        return self._ensure(request).record.state()

    async def pull(self, request: wire.PullRequest) -> wire.Pull:
        """As `start`, and wait for its end. Raises what it failed with."""
        flight = self._ensure(request)
        await flight.landed.wait()
        error = flight.record.error
        if error is not None:
            raise type(error)(
                error.message,
                param=error.param,
                code=error.error_code,
                retry_after=error.retry_after,
                extras=dict(error.extras),
            ) from error
        if flight.record.pulled is None:
            raise Conflict(f"the pull of {flight.record.request.model_id} was cancelled")
        return flight.record.state()

    async def cancel(self, model_id: str) -> None:
        """Stop the pulls of *model_id*; return when they have let go of their files."""
        flights = [
            flight
            for flight in self._flights
            if flight.under_way and flight.record.request.model_id == model_id
        ]
        if not flights:
            raise ModelNotFound(f"nothing is being pulled as '{clip(model_id)}'")
        for flight in flights:
            flight.scope.cancel("the pull was cancelled")
        for flight in flights:
            await flight.landed.wait()

    def close(self) -> None:
        """Begin nothing more, and stop what is under way: the neuron is shutting down."""
        self._closed = True
        for flight in self._flights:
            flight.scope.cancel("the neuron is shutting down")

    def _ensure(self, request: wire.PullRequest) -> _Flight:
        if self._closed:
            raise Draining("this neuron is shutting down")
        if self._nursery is None:
            raise Unavailable("this neuron is still starting")
        self._forget()
        for flight in self._flights:
            if flight.may_be_joined and _same(flight.record.request, request):
                if request.verify and not flight.record.request.verify:
                    raise Conflict(f"{request.model_id} is being pulled: verify it after that")
                return flight
        if self.under_way >= MOST:
            raise Overloaded(f"{MOST} pulls are under way or waiting")
        flight = _Flight(PullRecord(request, self._clock))
        self._flights.append(flight)
        self._nursery.start_soon(self._fly, flight, name=f"pull {request.model_id}")
        return flight

    async def _fly(self, flight: _Flight) -> None:
        """One pull, to whatever end: ``landed`` is set and the record is true afterwards."""
        record = flight.record
        asked = record.request
        try:
            with flight.scope:
                async with self._turns:
                    record.begin()
                    log.info("pulling", model=asked.model_id, source=asked.source or asked.model_id)
                    pulled = await self._sources.pull(
                        asked.source,
                        asked.model_id,
                        progress=record.report,
                        quant=asked.quant,
                        verify=asked.verify,
                    )
                    record.succeed(pulled)
        except CortexError as exc:
            record.fail(exc)
        except Exception as exc:  # it is the end of the pull, not of the neuron
            error = InternalError(f"the pull of {asked.model_id} failed: {type(exc).__name__}")
            error.__cause__ = exc
            record.fail(error)
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        record = flight.record
        if record.ended_at is None:
            record.cancel()
        state = record.state()
        fields = {"model": state.id, "seconds": state.seconds, "fetched": state.fetched}
        if record.error is not None:
            log.error("pull failed", exc=record.error, **fields)
        else:
            log.info("pull ended", status=state.status, repaired=state.repaired, **fields)
        flight.landed.set()
        self.on_ended(state)

    def _forget(self) -> None:
        """Drop what ended long ago, or is more than is kept."""
        horizon = self._clock() - KEPT_SECONDS
        ended = [flight for flight in self._flights if not flight.under_way]
        old = ended[: max(0, len(ended) - KEPT)]
        old += [flight for flight in ended if (flight.record.ended_at or 0.0) < horizon]
        self._flights = [flight for flight in self._flights if flight not in old]


def _same(one: wire.PullRequest, other: wire.PullRequest) -> bool:
    return _what(one) == _what(other)


def _what(request: wire.PullRequest) -> tuple[str, str | None]:
    return request.source or request.model_id, request.quant
