"""Tokens per second, as they are measured and as they come out of an engine's events."""

from __future__ import annotations

import attrs
import pytest
from fakes.engine import FakeEngine, request

from cortex.engine.request import FinishReason, FirstToken, TokenEvent
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.engine_handle import EngineHandle
from cortex.neuron.jobs import OpenedEngine
from cortex.neuron.speed import Speed


def test_nothing_is_known_before_it_is_measured() -> None:
    speed = Speed()
    speed.decoded(10, 0.5)
    speed.prefilled(0, 1.0)  # all of it came from the cache
    speed.prefilled(10, 0.0)
    assert (speed.prefill, speed.decode) == (None, None)


def test_a_measurement_covers_a_second_of_work_and_is_smoothed() -> None:
    speed = Speed()
    for _ in range(4):
        speed.decoded(5, 0.25)
    assert speed.decode == 20
    speed.decoded(40, 1.0)
    assert speed.decode == pytest.approx(26)
    speed.prefilled(100, 0.5)
    speed.prefilled(100, 1.0)
    assert speed.prefill == pytest.approx(170)


async def test_an_engines_idle_time_does_not_count() -> None:
    now = 100.0
    thread = DeviceThread("fake-dev-0")
    handle = EngineHandle(thread, 1, OpenedEngine(1000, 0, 0), clock=lambda: now)
    busy = attrs.evolve(FakeEngine().stats(), running=1)
    idle = attrs.evolve(busy, running=0)

    def event(finish: FinishReason | None = None, first: FirstToken | None = None) -> TokenEvent:
        return TokenEvent("a", 1, finish, None, first)

    async with handle.stream(request("a", prompt=tuple(range(1, 51)))):
        handle.deliver([event(first=FirstToken(10, 98.0, None))], busy)
        assert handle.speed.prefill == 20  # 40 tokens in 2 s
        now += 1
        handle.deliver([event()] * 8, idle)
        assert handle.speed.decode == 8
        now += 1000
        handle.deliver([event()], busy)
        now += 1
        handle.deliver([event()] * 8, idle)
        assert handle.speed.decode == 8
