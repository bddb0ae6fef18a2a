"""Whether something works, by what was lately seen of it: tried seldom, once for all who ask.

What is seen to work anyway counts as proof, so that a busy service is never tried, and one that is
tried by everybody is tried no more often than one that is tried by one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import attrs
import trio

from cortex.errors import Draining
from cortex.service import logs
from cortex.service.single_flight import FlightFailed, SingleFlight

OK = "ok"
FAILED = "failed"
TIMED_OUT = "timed_out"

TRAFFIC = "traffic"
PROBE = "probe"

log = logs.get("service.proof")


@attrs.frozen
class Verdict:
    """``result`` is `OK` or says what went wrong, in one word; ``by`` says what it rests on: a
    `PROBE`, or the `TRAFFIC`. ``at`` is the proof's clock."""

    result: str
    by: str
    at: float

    @property
    def ok(self) -> bool:
        return self.result == OK


@attrs.define(eq=False)
class Proof:
    """*probe* tries it and gives `OK` or what went wrong; it is cancelled after *bound* seconds.
    *seen_at* tells when it was last seen to work without that (-inf: never).

    A verdict holds for *seconds* (asked each time), and within as long nothing is tried twice,
    unless what there is to try has changed since it failed. Probes run in *nursery*, so that one
    goes on for the others when who asked first has left.
    """

    _nursery: trio.Nursery
    _probe: Callable[[], Awaitable[str]]
    _seconds: Callable[[], float]
    _seen_at: Callable[[], float]
    _count: Callable[[str], None] = lambda _: None  # hears of each result
    _bound: float = 10.0
    clock: Callable[[], float] = trio.current_time
    _began: float = attrs.field(default=-inf, init=False)
    _last: Verdict | None = attrs.field(default=None, init=False)
    _tried: frozenset[object] = attrs.field(default=frozenset(), init=False)
    _flights: SingleFlight[str, Verdict] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._flights = SingleFlight(self._nursery)

    async def verdict(self, subject: frozenset[object]) -> Verdict:
        """What holds now of *subject*, which are the things that a probe would try."""
        now, seconds = self.clock(), self._seconds()
        if now - self._seen_at() < seconds:
            return Verdict(OK, TRAFFIC, self._seen_at())
        last = self._last
        if last is not None and last.ok and now - last.at < seconds:
            return last
        if "probe" not in self._flights:
            lately = now - self._began < seconds
            if last is not None and lately and subject <= self._tried:
                return last
            self._began, self._tried = now, subject
        try:
            return await self._flights.run("probe", self._try)
        except FlightFailed:  # with its nursery, alone
            raise Draining("the service is shutting down") from None

    async def _try(self, _: str) -> Verdict:
        result = TIMED_OUT
        try:
            with trio.move_on_after(self._bound):
                result = await self._probe()
        except Exception as exc:  # a bug of ours, which must not be tried at any rate
            log.error("a probe failed", exc=exc)
            result = FAILED
        self._last = Verdict(result, PROBE, self.clock())
        self._count(result)
        return self._last
