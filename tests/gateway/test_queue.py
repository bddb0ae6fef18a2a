"""The waiting room: capacity, order, bounds, and nothing left behind."""

from __future__ import annotations

import random

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cortex.errors import Overloaded
from cortex.gateway.queue import WaitingRoom
from cortex.wire import neuron as wire

MODEL = "house/small"


@attrs.frozen
class _Node:
    health: wire.Health | None


@attrs.frozen
class _Replica:
    node: _Node
    servable: bool = True


class _Fleet:
    """What the room asks of the fleet: the replicas of a model, and a change to wait for."""

    def __init__(self, *capacities: int | None) -> None:
        self.set(*capacities)
        self._changed = trio.Event()

    def set(self, *capacities: int | None) -> None:
        self._replicas = tuple(
            _Replica(_Node(wire.Health(1.0, models=(wire.ModelLoad(MODEL, 0, 0, capacity, 0),))))
            for capacity in capacities
        )

    def change(self, *capacities: int | None) -> None:
        self.set(*capacities)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def replicas(self, model: str) -> tuple[_Replica, ...]:
        return self._replicas if model == MODEL else ()

    async def wait_changed(self) -> None:
        await self._changed.wait()


def room(*capacities: int | None, depth: int = 10, patience: float = 5.0):
    fleet = _Fleet(*capacities)
    return WaitingRoom(fleet, depth, patience), fleet


class Guest:
    """Takes a seat when its task runs and gives it back when told to."""

    def __init__(self, name: object, log: list[object], *terms: str) -> None:
        self.name, self.log, self.leave, self.terms = name, log, trio.Event(), terms

    async def sit(self, it: WaitingRoom) -> None:
        async with it.seat(MODEL, *self.terms):
            self.log.append(self.name)
            await self.leave.wait()


async def seat_guests(it, nursery, count):
    log: list[int] = []
    guests = [Guest(n, log) for n in range(count)]
    for guest in guests:
        nursery.start_soon(guest.sit, it)
        await wait_all_tasks_blocked()
    return guests, log


async def test_what_the_replicas_take_together_is_let_in_and_the_rest_waits_in_order(nursery):
    it, _ = room(2, 1)
    guests, log = await seat_guests(it, nursery, 6)
    assert (log, it.waiting(MODEL)) == ([0, 1, 2], 3)
    for leaver, expected in ((1, [3]), (0, [4]), (2, [5])):
        guests[leaver].leave.set()
        await wait_all_tasks_blocked()
        assert log[-1:] == expected
    nursery.cancel_scope.cancel()


async def test_an_unknown_capacity_or_no_replica_bounds_nobody(nursery):
    for capacities in ((None,), ()):
        it, _ = room(*capacities)
        _, log = await seat_guests(it, nursery, 20)
        assert len(log) == 20
    nursery.cancel_scope.cancel()


async def test_a_full_room_refuses_at_once(nursery):
    it, _ = room(1, depth=2)
    _, log = await seat_guests(it, nursery, 3)
    assert log == [0]
    with pytest.raises(Overloaded) as refused:
        async with it.seat(MODEL):
            pass
    assert refused.value.retry_after
    nursery.cancel_scope.cancel()


async def test_a_wait_that_is_too_long_is_refused_and_leaves_the_line(nursery, autojump_clock):
    it, _ = room(1, patience=3.0)
    guests, log = await seat_guests(it, nursery, 1)
    started = trio.current_time()
    with pytest.raises(Overloaded):
        async with it.seat(MODEL):
            pass
    assert trio.current_time() - started == pytest.approx(3.0)
    assert it.waiting(MODEL) == 0
    guests[0].leave.set()
    await wait_all_tasks_blocked()
    async with it.seat(MODEL) as seat:
        assert seat.waited == 0
    assert log == [0]


async def test_a_waiter_that_leaves_gives_its_place_to_the_next(nursery):
    it, _ = room(1)
    guests, log = await seat_guests(it, nursery, 1)
    async with trio.open_nursery() as impatient:
        impatient.start_soon(Guest(1, log).sit, it)
        await wait_all_tasks_blocked()
        nursery.start_soon(Guest(2, log).sit, it)
        await wait_all_tasks_blocked()
        impatient.cancel_scope.cancel()
    guests[0].leave.set()
    await wait_all_tasks_blocked()
    assert log == [0, 2]
    nursery.cancel_scope.cancel()


async def test_a_waiter_let_in_while_it_is_cancelled_passes_the_seat_on(nursery):
    it, _ = room(1)
    guests, log = await seat_guests(it, nursery, 1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(Guest(1, log).sit, it)
            await wait_all_tasks_blocked()
            guests[0].leave.set()
            scope.cancel()
    await wait_all_tasks_blocked()
    with trio.fail_after(1):
        async with it.seat(MODEL):
            pass
    nursery.cancel_scope.cancel()


async def test_more_capacity_lets_waiters_in(nursery):
    it, fleet = room(1)
    nursery.start_soon(it.run)
    _, log = await seat_guests(it, nursery, 4)
    assert log == [0]
    fleet.change(2, 1)
    await wait_all_tasks_blocked()
    assert sorted(log) == [0, 1, 2]  # let in together, they run in any order
    nursery.cancel_scope.cancel()


async def test_retrying_later_waits_for_a_seat_or_a_second(nursery, autojump_clock):
    it, _ = room(None)
    guests, _ = await seat_guests(it, nursery, 1)
    started = trio.current_time()
    await it.retry_later(MODEL)
    assert trio.current_time() - started == pytest.approx(1.0)
    nursery.start_soon(it.retry_later, MODEL)
    await wait_all_tasks_blocked()
    guests[0].leave.set()
    before = trio.current_time()
    await wait_all_tasks_blocked()
    assert trio.current_time() == before


# Between keys


async def queued(it, nursery, *guests: Guest) -> None:
    for guest in guests:
        nursery.start_soon(guest.sit, it)
        await wait_all_tasks_blocked()


async def serve_in_turn(log: list[object], guests: dict[object, Guest]) -> None:
    """Let whoever came in last leave, until nobody is left."""
    for _ in range(len(guests)):
        guests[log[-1]].leave.set()
        await wait_all_tasks_blocked()


async def test_one_keys_crowd_delays_another_keys_request_by_one_turn(nursery):
    it, _ = room(1)
    log: list[object] = []
    names = ["a0", "a1", "a2", "a3", "b0", "b1"]
    guests = {name: Guest(name, log, name[0]) for name in names}
    await queued(it, nursery, *guests.values())
    await serve_in_turn(log, guests)
    assert log == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_a_key_that_holds_fewer_seats_comes_first(nursery):
    it, _ = room(4)
    log: list[object] = []
    names = ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1", "b2"]
    guests = {name: Guest(name, log, name[0]) for name in names}
    await queued(it, nursery, *guests.values())
    assert log == ["a0", "a1", "a2", "a3"]
    for name in ("a0", "a1", "a2"):
        guests[name].leave.set()
        await wait_all_tasks_blocked()
    # b has its half of the seats, then the turns alternate.
    assert log[4:] == ["b0", "b1", "a4"]
    nursery.cancel_scope.cancel()


async def test_priorities_go_first_and_waiting_raises_them(nursery, autojump_clock):
    it, _ = room(1, patience=1000)
    log: list[object] = []
    guests = {
        name: Guest(name, log, "k", name.rstrip("0123456789"))
        for name in ("normal0", "batch0", "normal1", "interactive0", "batch1", "interactive1")
    }
    await queued(it, nursery, *list(guests.values())[:4])
    await trio.sleep(45)  # batch0 and normal1 stand above whoever comes now
    await queued(it, nursery, *list(guests.values())[4:])
    await serve_in_turn(log, guests)
    assert log == ["normal0", "interactive0", "normal1", "batch0", "interactive1", "batch1"]


async def test_a_full_line_makes_room_for_a_key_that_has_less_of_it(nursery):
    it, _ = room(1, depth=3)
    log: list[object] = []
    guests = [Guest(f"a{n}", log, "a") for n in range(2)]
    await queued(it, nursery, *guests)
    refused: list[str] = []

    async def displaced(name: str) -> None:
        with pytest.raises(Overloaded, match="of this key"):
            async with it.seat(MODEL, "a"):
                raise AssertionError
        refused.append(name)

    for name in ("a2", "a3"):
        nursery.start_soon(displaced, name)
        await wait_all_tasks_blocked()
    with pytest.raises(Overloaded, match="wait for"):  # its own key has the most
        async with it.seat(MODEL, "a"):
            pass
    await queued(it, nursery, Guest("b0", log, "b"))
    assert (refused, it.waiting(MODEL)) == (["a3"], 3)
    with pytest.raises(Overloaded):  # two and one: nobody has two more than it
        async with it.seat(MODEL, "b"):
            pass
    await queued(it, nursery, Guest("c0", log, "c"))
    assert (refused, it.waiting(MODEL)) == (["a3", "a2"], 3)
    guests[0].leave.set()
    await wait_all_tasks_blocked()
    assert log == ["a0", "b0"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_seats_are_conserved_whatever_happens(seed, autojump_clock):
    """Guests that come, leave, give up and are cancelled at random, while the capacity changes."""
    chance = random.Random(seed)
    it, fleet = room(2, depth=4, patience=3.0)
    inside = most = served = 0

    async def guest() -> None:
        nonlocal inside, most, served
        with trio.move_on_after(chance.choice([0.5, 2.0, 100.0])):
            try:
                async with it.seat(
                    MODEL, chance.choice("abc"), chance.choice(["interactive", "normal", "batch"])
                ):
                    inside += 1
                    most = max(most, inside)
                    try:
                        await trio.sleep(chance.random() * 2)
                        served += 1
                    finally:
                        inside -= 1
            except Overloaded:
                pass

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run)
            async with trio.open_nursery() as guests:
                for step in range(60):
                    guests.start_soon(guest)
                    await trio.sleep(chance.random() * 0.5)
                    if step % 20 == 10:
                        fleet.change(chance.choice([1, 2, 3]))
            nursery.cancel_scope.cancel()
    assert (inside, it.waiting(MODEL), it._lines) == (0, 0, {})
    assert 1 <= most <= 3
    assert served > 10
