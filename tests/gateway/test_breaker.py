from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.breaker import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    WINDOW,
    Breaker,
    State,
    Ticket,
)


def fail(breaker: Breaker, now: float, times: int = FAILURES) -> None:
    for _ in range(times):
        ticket = breaker.enter(now)
        breaker.failed(ticket, now)
        breaker.left(ticket)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    fail(breaker, now)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_after_so_many_failures_and_not_before():
    breaker = Breaker()
    fail(breaker, 0, FAILURES - 1)
    assert breaker.state is State.CLOSED
    assert breaker.admits(0)
    fail(breaker, 1, 1)
    assert breaker.state is State.OPEN
    assert not breaker.admits(1)


def test_failures_far_apart_do_not_open_it():
    breaker = Breaker()
    for number in range(4 * FAILURES):
        fail(breaker, number * WINDOW / (FAILURES - 1) * 1.1, 1)
    assert breaker.state is State.CLOSED


def test_a_few_failures_among_many_successes_do_not_open_it():
    breaker = Breaker()
    for number in range(10 * FAILURES):
        ticket = breaker.enter(0)
        breaker.succeeded(ticket, 0) if number % 3 else breaker.failed(ticket, 0)
    assert breaker.state is State.CLOSED


def test_after_the_back_off_one_request_is_let_through_and_decides():
    breaker = opened()
    assert not breaker.admits(FIRST_PAUSE - 0.1)
    assert breaker.admits(FIRST_PAUSE)
    probe = breaker.enter(FIRST_PAUSE)
    assert probe.probe
    assert breaker.state is State.HALF_OPEN
    assert not breaker.admits(FIRST_PAUSE)
    assert not breaker.enter(FIRST_PAUSE).probe
    breaker.succeeded(probe, FIRST_PAUSE + 1)
    assert breaker.state is State.CLOSED
    assert breaker.admits(FIRST_PAUSE + 1)


def test_each_probe_that_fails_doubles_the_back_off_up_to_a_bound():
    breaker, now, pauses = opened(), FIRST_PAUSE, []
    for _ in range(8):
        fail(breaker, now, 1)
        pauses.append(breaker.until - now)
        now = breaker.until
    assert pauses == [10, 20, 40, 60, 60, 60, 60, 60]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_circuit_that_opens_soon_again_stays_open_longer():
    breaker = opened()
    breaker.succeeded(breaker.enter(FIRST_PAUSE), FIRST_PAUSE)
    fail(breaker, 10)
    assert breaker.until - 10 == 2 * FIRST_PAUSE
    breaker.succeeded(breaker.enter(breaker.until), breaker.until)
    later = breaker.until + WINDOW + 1
    fail(breaker, later)
    assert breaker.until - later == FIRST_PAUSE


def test_a_probe_that_tells_nothing_makes_room_for_another():
    breaker = opened()
    probe = breaker.enter(FIRST_PAUSE)
    breaker.left(probe)
    assert breaker.state is State.OPEN
    assert breaker.admits(FIRST_PAUSE)
    assert breaker.enter(FIRST_PAUSE).probe


def test_what_began_before_it_opened_says_nothing_any_more():
    breaker = Breaker()
    old = breaker.enter(0)
    fail(breaker, 1)
    breaker.succeeded(old, 2)
    assert breaker.state is State.OPEN
    until = breaker.until
    breaker.failed(old, 3)
    assert breaker.until == until


def test_a_request_sent_for_want_of_another_node_may_close_it_but_not_hold_it_open():
    breaker = opened()
    until = breaker.until
    fail(breaker, 1)
    assert breaker.until == until
    breaker.succeeded(breaker.enter(2), 3)
    assert breaker.state is State.CLOSED


def test_a_stream_that_breaks_after_its_head_counts_as_a_failure_too():
    breaker = Breaker()
    for _ in range(FAILURES):
        ticket = breaker.enter(0)
        breaker.succeeded(ticket, 0)
        breaker.failed(ticket, 1)
        breaker.left(ticket)
    assert breaker.state is State.OPEN


steps = st.lists(
    st.tuples(st.sampled_from(["enter", "succeeded", "failed", "left", "wait"]), st.integers(0, 5)),
    max_size=80,
)


@given(steps)
def test_whatever_happens_it_is_never_stuck_and_never_probes_twice_at_once(found):
    breaker, now = Breaker(), 0.0
    tickets: list[Ticket] = []
    probing: Ticket | None = None
    for what, number in found:
        if what == "wait":
            now += number * 3.0
        elif what == "enter":
            ticket = breaker.enter(now)
            if ticket.probe:
                assert probing is None or probing not in tickets
                probing = ticket
            tickets.append(ticket)
        elif tickets:
            ticket = tickets[number % len(tickets)]
            if what == "left":
                tickets.remove(ticket)
                breaker.left(ticket)
            elif what == "failed":
                breaker.failed(ticket, now)
            else:
                breaker.succeeded(ticket, now)
            if ticket is probing and what != "left":
                probing = None
        assert breaker.until <= now + LONGEST_PAUSE
    for ticket in tickets:
        breaker.left(ticket)
    assert breaker.admits(now + LONGEST_PAUSE)


@pytest.mark.parametrize("state", list(State))
def test_states_have_names_for_people_and_dashboards(state):
    assert state.value in ("closed", "open", "half_open")
