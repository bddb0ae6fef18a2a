from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from cortex.gateway.events import Batch, Event, EventLog


def log(kept: int = 4) -> EventLog:
    return EventLog(kept, clock=lambda: 12.5)


async def test_events_are_numbered_and_say_nothing_of_what_is_not_known():
    events = log()
    events.publish("node_up", node="a", version=None)
    events.publish("reloaded")
    assert events.last == 2
    first, second = events.since(0).events
    assert first == Event(1, "node_up", 12.5, {"node": "a"})
    assert (second.number, second.fields) == (2, {})


async def test_a_reader_behind_the_ring_is_told_how_many_it_missed():
    events = log(kept=4)
    for number in range(1, 11):
        events.publish("tick", n=number)
    batch = events.since(3)
    assert [event.number for event in batch.events] == [7, 8, 9, 10]
    assert batch.missed == 3
    assert events.since(6).missed == 0
    assert events.since(10) == Batch((), 0)


async def test_a_reader_waits_for_the_next_event_and_misses_none(autojump_clock):
    events = log()
    read: list[int] = []

    async def reader() -> None:
        number = 0
        while number < 3:
            batch = await events.wait_since(number)
            assert batch is not None
            read.extend(event.number for event in batch.events)
            number = batch.events[-1].number

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            assert read == []
            events.publish("one")
            await wait_all_tasks_blocked()
            assert read == [1]
            events.publish("two")
            events.publish("three")
    assert read == [1, 2, 3]


async def test_closing_the_log_ends_its_readers():
    events = log()
    ended: list[Batch | None] = []

    async def reader() -> None:
        ended.append(await events.wait_since(0))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            events.close()
    assert ended == [None]
    assert await events.wait_since(0) is None


def test_two_processes_have_lives_of_their_own():
    assert EventLog().life != EventLog().life
