"""At most one running call per key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import attrs
import trio

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FlightCancelled(Exception):
    """The call was stopped with `SingleFlight.cancel`."""


class FlightFailed(Exception):
    """The call that was waited for failed; ``__cause__`` says how."""


@attrs.define(eq=False)
class _Flight(Generic[V]):
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    landed: trio.Event = attrs.field(factory=trio.Event)
    value: V | None = None
    error: BaseException | None = None
    succeeded: bool = False


@attrs.define(eq=False)
class SingleFlight(Generic[K, V]):
    """Joins callers that want the same thing at the same time to one call.

    The call belongs to *nursery*, not to the caller that happened to come first: when that caller
    is cancelled, the others still get their answer, and the call goes on when all have left.
    """

    _nursery: trio.Nursery
    _flights: dict[K, _Flight[V]] = attrs.field(factory=dict, init=False)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def start(self, key: K, fn: Callable[[K], Awaitable[V]]) -> None:
        """Begin the call for *key* unless one is under way; nobody needs to wait for it."""
        self._join(key, fn)

    async def run(self, key: K, fn: Callable[[K], Awaitable[V]]) -> V:
        """What ``fn(key)`` returns, from the call under way or a new one.

        Raises `FlightFailed` from the call's own error; each waiter gets one of its own, since an
        exception raised in several tasks would collect all their tracebacks.
        """
        flight = self._join(key, fn)
        await flight.landed.wait()
        if not flight.succeeded:
            raise FlightFailed(key) from flight.error
        return flight.value  # type: ignore[return-value]

    def cancel(self, key: K, reason: str) -> bool:
        """Stop the call for *key*; its waiters get `FlightFailed`. False when there is none."""
        flight = self._flights.get(key)
        if flight is None:
            return False
        flight.scope.cancel(reason)
        return True

    def _join(self, key: K, fn: Callable[[K], Awaitable[V]]) -> _Flight[V]:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, fn, name=f"flight {key}")
        return flight

    async def _fly(self, key: K, flight: _Flight[V], fn: Callable[[K], Awaitable[V]]) -> None:
        try:
            with flight.scope:
                flight.value = await fn(key)
                flight.succeeded = True
            if flight.scope.cancelled_caught:
                flight.error = FlightCancelled(str(key))
        except Exception as exc:
            flight.error = exc  # every caller gets it; the service goes on
        finally:
            del self._flights[key]
            flight.landed.set()
