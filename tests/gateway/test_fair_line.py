from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.fair_line import AGEING_SECONDS, FairLine, Waiter

KEYS = st.sampled_from("abc")
RANK = st.integers(0, 2)


def test_a_request_rises_by_a_class_for_each_span_it_waits():
    waiter = Waiter("k", 2, 100.0)
    spans = [0, 0.99, 1, 2, 3.5, 10]
    assert [waiter.standing(100 + n * AGEING_SECONDS) for n in spans] == [2, 2, 1, 0, -1, -8]


@given(
    st.lists(st.tuples(KEYS, RANK, st.floats(0, 30)), min_size=1, max_size=40), st.integers(1, 3)
)
def test_nobody_is_passed_by_who_came_much_later(steps, each):
    """The stated bound: (1 + classes between) spans; and a key's own class stays in order."""
    line, now, left, order = FairLine(), 0.0, [], []
    for number, (key, rank, pause) in enumerate(steps):
        now += pause
        waiter = Waiter(key, rank, now)
        line.push(waiter)
        left.append(waiter)
        if number % each == 0:
            order.append(served(line, left, now))
    while left:
        now += 7.0
        order.append(served(line, left, now))
    assert len(line) == 0
    for earlier, waiter in enumerate(order):
        for other in order[earlier + 1 :]:  # served later: may it have come so much earlier?
            bound = (1 + max(0, other.rank - waiter.rank)) * AGEING_SECONDS
            assert waiter.arrived < other.arrived + bound
            if (waiter.key, waiter.rank) == (other.key, other.rank):
                assert waiter.arrived <= other.arrived


def served(line: FairLine, left: list[Waiter], now: float) -> Waiter:
    waiter = line.pop(now)
    left.remove(waiter)
    assert waiter.standing(now) == min(other.standing(now) for other in [*left, waiter])
    return waiter


@pytest.mark.parametrize("seats", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_keys_that_always_have_requests_share_seat_time_whatever_these_cost(seats, seed):
    """Three keys whose requests take 1, 3 and 9 times as long, each with a crowd waiting."""
    chance = random.Random(seed)
    line, held_until, time = FairLine(), [], {"a": 0.0, "b": 0.0, "c": 0.0}
    cost, now = {"a": 1.0, "b": 3.0, "c": 9.0}, 0.0
    for key in "abc":
        for _ in range(30):
            line.push(Waiter(key, 1, 0.0))
    while now < 2000:
        while len(held_until) < seats:
            waiter = line.pop(0.0)
            line.sit(waiter.key)
            line.push(Waiter(waiter.key, 1, 0.0))
            spent = cost[waiter.key] * (0.5 + chance.random())
            time[waiter.key] += spent
            held_until.append((now + spent, waiter.key))
        held_until.sort()
        now, key = held_until.pop(0)
        line.leave(key)
    shares = [spent / sum(time.values()) for spent in time.values()]
    if seats >= 3:  # each holds its third of them all the time
        assert min(shares) > 0.3
    else:  # with fewer seats than keys they take turns
        assert min(shares) > 0.05


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "pop", "remove", "displace", "sit", "leave"]), KEYS, RANK
        ),
        max_size=80,
    )
)
def test_nothing_is_lost_or_kept(steps):
    """Against the obvious: a list of who waits and a count of who sits."""
    line, waiting, sitting, now = FairLine(), [], [], 0.0
    for what, key, rank in steps:
        now += 1.0
        if what == "push":
            waiting.append(Waiter(key, rank, now))
            line.push(waiting[-1])
        elif what == "pop" and waiting:
            waiting.remove(line.pop(now))
        elif what == "remove" and waiting:
            gone = waiting.pop(rank % len(waiting))
            assert line.remove(gone)
            assert not line.remove(gone)
        elif what == "displace":
            check_displaced(line, waiting, key)
        elif what == "sit":
            line.sit(key)
            sitting.append(key)
        elif what == "leave" and key in sitting:
            line.leave(key)
            sitting.remove(key)
        assert len(line) == len(waiting)
    while waiting:
        waiting.remove(line.pop(now))
    for key in sitting:
        line.leave(key)
    assert not any((line._lanes, line._waiting, line._held, line._turns))


def check_displaced(line: FairLine, waiting: list[Waiter], key: str) -> None:
    counts = {name: sum(waiter.key == name for waiter in waiting) for name in "abc"}
    gone = line.displace_for(key)
    if max(counts.values()) < counts[key] + 2:
        assert gone is None
        return
    assert gone is not None
    assert counts[gone.key] == max(counts.values())
    same = [waiter for waiter in waiting if waiter.key == gone.key]
    worst = max(waiter.rank for waiter in same)
    assert gone is [waiter for waiter in same if waiter.rank == worst][-1]
    waiting.remove(gone)
