"""Seats: never more than there are, always given back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import BadRequest, Draining, Overloaded
from cortex.neuron.admission import Admission


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=40))
def test_no_history_takes_more_than_there_are_or_leaves_one_taken(
    history: list[tuple[int, bool]],
) -> None:
    admission = Admission(max_running=2, max_waiting=2)
    held: list[tuple[ExitStack, int]] = []
    rejected = 0
    for wanted, leave_first in history:
        if leave_first and held:
            held.pop(0)[0].close()
        taken = sum(n for _, n in held)
        stack = ExitStack()
        if taken + wanted > 4:
            rejected += 1
            with pytest.raises(Overloaded):
                stack.enter_context(admission.admit("m", wanted))
        else:
            stack.enter_context(admission.admit("m", wanted))
            held.append((stack, wanted))
        taken = sum(n for _, n in held)
        assert admission.seats("m").taken == taken <= 4
        assert admission.waiting("m") == max(0, taken - 2)
        assert admission.seats("m").rejected == rejected
    for stack, _ in held:
        stack.close()
    assert admission.seats("m").taken == 0


def test_a_failure_inside_gives_the_seats_back() -> None:
    admission = Admission(1, 1)
    with pytest.raises(KeyError), admission.admit("m", 2):
        raise KeyError
    assert admission.seats("m").taken == 0


def test_models_do_not_take_each_others_seats() -> None:
    admission = Admission(1, 0)
    with admission.admit("a", 1), admission.admit("b", 1), pytest.raises(Overloaded):
        admission.admit("a", 1).__enter__()
    assert (admission.seats("a").rejected, admission.seats("b").rejected) == (1, 0)


def test_the_wait_a_client_is_told_grows_with_the_queue_and_is_bounded() -> None:
    def told(waiting: int) -> float:
        admission = Admission(1, waiting)
        with admission.admit("m", 1 + waiting), pytest.raises(Overloaded) as raised:
            admission.admit("m", 1).__enter__()
        assert raised.value.retry_after is not None
        return raised.value.retry_after

    assert 1 <= told(0) < told(10) <= told(1000) == 120


def test_what_can_never_be_seated_is_no_overload() -> None:
    admission = Admission(2, 2)
    with pytest.raises(BadRequest, match="5 completions"):
        admission.admit("m", 5).__enter__()
    assert admission.seats("m").rejected == 0


def test_nothing_is_admitted_once_closed_and_what_runs_goes_on() -> None:
    admission = Admission(1, 1)
    with admission.admit("m", 1):
        admission.close()
        with pytest.raises(Draining):
            admission.admit("m", 1).__enter__()
        assert admission.seats("m").taken == 1
    assert admission.seats("m").taken == 0


def test_the_counts_of_a_model_that_is_gone_are_dropped_unless_it_is_busy() -> None:
    admission = Admission(1, 0)
    with admission.admit("m", 1):
        with pytest.raises(Overloaded):
            admission.admit("m", 1).__enter__()
        admission.forget("m")
        assert admission.seats("m").rejected == 1
    admission.forget("m")
    admission.forget("never seen")
    assert admission.seats("m").rejected == 0
