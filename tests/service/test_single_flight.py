"""Callers of one key share one call."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cortex.service.single_flight import FlightCancelled, FlightFailed, SingleFlight


class Work:
    def __init__(self):
        self.calls = 0
        self.go = trio.Event()
        self.error: Exception | None = None

    async def __call__(self, key: str) -> str:
        self.calls += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return f"{key}-{self.calls}"


async def test_callers_share_one_call_and_later_ones_start_anew(nursery):
    flights, work, seen = SingleFlight(nursery), Work(), []

    async def call() -> None:
        seen.append(await flights.run("a", work))

    async with trio.open_nursery() as callers:
        for _ in range(5):
            callers.start_soon(call)
        await wait_all_tasks_blocked()
        work.go.set()
    assert seen == ["a-1"] * 5
    assert "a" not in flights
    await call()
    assert work.calls == 2


async def test_the_call_goes_on_when_the_first_caller_and_then_all_leave(nursery):
    flights, work = SingleFlight(nursery), Work()
    async with trio.open_nursery() as callers:
        callers.start_soon(flights.run, "a", work)
        await wait_all_tasks_blocked()
        callers.cancel_scope.cancel()
    assert "a" in flights
    work.go.set()
    assert await flights.run("a", work) == "a-1"


async def test_each_waiter_gets_an_error_of_its_own_with_the_cause(nursery):
    flights, work = SingleFlight(nursery), Work()
    work.error, seen = ValueError("no"), []
    work.go.set()

    async def call() -> None:
        with pytest.raises(FlightFailed) as caught:
            await flights.run("a", work)
        seen.append(caught.value)

    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        callers.start_soon(call)
    assert seen[0] is not seen[1]
    assert all(error.__cause__ is work.error for error in seen)


async def test_a_cancelled_call_fails_its_waiters(nursery):
    flights, work, seen = SingleFlight(nursery), Work(), []

    async def call() -> None:
        with pytest.raises(FlightFailed) as caught:
            await flights.run("a", work)
        seen.append(caught.value.__cause__)

    async with trio.open_nursery() as callers:
        callers.start_soon(call)
        await wait_all_tasks_blocked()
        assert flights.cancel("a", "unloaded")
    assert isinstance(seen[0], FlightCancelled)
    assert not flights.cancel("a", "again")
