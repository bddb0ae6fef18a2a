"""Polling backs off while it fails."""

from __future__ import annotations

import pytest
import trio

from cortex.service.poll import Cadence, poll

CADENCE = Cadence(interval=2.0, ceiling=10.0, jitter=0.0)


async def test_failures_stretch_the_pause_and_a_success_shrinks_it(nursery, autojump_clock):
    results = [1, None, None, None, 5, 6]
    seen: list[tuple[float, int | None]] = []
    start = trio.current_time()
    done = trio.Event()

    async def probe() -> int:
        if not results:
            done.set()
            await trio.sleep_forever()
        value = results.pop(0)
        if value is None:
            raise OSError
        return value

    def publish(value: int | None) -> None:
        seen.append((round(trio.current_time() - start, 3), value))

    async def run() -> None:
        await poll(probe, publish, weather=(OSError,), cadence=CADENCE)

    nursery.start_soon(run)
    await done.wait()
    assert seen == [(0, 1), (2, None), (6, None), (14, None), (24, 5), (26, 6)]
    nursery.cancel_scope.cancel()


async def test_an_unexpected_error_ends_the_poll(autojump_clock):
    async def probe() -> int:
        raise KeyError

    with pytest.raises(KeyError):
        await poll(probe, lambda _: None, weather=(OSError,), cadence=CADENCE)


async def test_waking_cuts_a_pause_short(nursery, autojump_clock):
    seen: list[float] = []
    events = [trio.Event(), trio.Event()]
    start = trio.current_time()

    async def probe() -> int:
        seen.append(trio.current_time() - start)
        return 0

    async def run() -> None:
        await poll(
            probe,
            lambda _: None,
            weather=(),
            cadence=Cadence(100.0, 100.0, 0.0),
            wake=lambda: events[min(len(seen) - 1, 1)],
        )

    nursery.start_soon(run)
    await trio.sleep(1)
    events[0].set()
    await trio.sleep(150)
    assert seen == [0, 1, 101]
    nursery.cancel_scope.cancel()


def test_jitter_spreads_the_pause_and_the_ceiling_holds():
    cadence = Cadence(2.0, 60.0, 0.1)
    assert cadence.pause(0, 1) == pytest.approx(2.2)
    assert cadence.pause(0, -1) == pytest.approx(1.8)
    assert cadence.pause(1000, 0) == 60.0
