"""Who is next."""

from __future__ import annotations

import pytest

from cortex.engine.request import Request, SamplingParams
from cortex.engine.sequence import Sequence
from cortex.engine.waiting import WaitingQueue


def sequence(arrival: int, caller: str = "", priority: int = 0) -> Sequence:
    request = Request(str(arrival), (1,), SamplingParams(), 1, caller=caller, priority=priority)
    return Sequence(request, seed=0, limit=2, arrival=arrival)


def drained(queue: WaitingQueue) -> list[int]:
    return [queue.pop().arrival for _ in range(len(queue))]


def queue_of(*sequences: Sequence) -> WaitingQueue:
    queue = WaitingQueue()
    for one in sequences:
        queue.push(one)
    return queue


def test_one_callers_requests_keep_their_order():
    assert drained(queue_of(*(sequence(i) for i in range(4)))) == [0, 1, 2, 3]


def test_callers_take_turns():
    callers = "aaabbc"
    queue = queue_of(*(sequence(i, caller) for i, caller in enumerate(callers)))
    assert drained(queue) == [0, 3, 5, 1, 4, 2]


def test_a_caller_who_comes_back_goes_to_the_end_of_the_turn():
    queue = queue_of(sequence(0, "a"), sequence(1, "b"), sequence(2, "b"))
    assert queue.pop().arrival == 0
    queue.push(sequence(3, "a"))
    assert drained(queue) == [1, 3, 2]


def test_priority_comes_before_turns_and_preempted_before_both():
    queue = queue_of(sequence(0, "a"), sequence(5, "b", priority=1), sequence(6, "a"))
    queue.push_preempted(sequence(4, "a"))
    queue.push_preempted(sequence(3, "c"))
    assert drained(queue) == [5, 3, 4, 0, 6]


def test_who_is_taken_out_is_not_served_and_the_others_keep_their_turn():
    gone, back = sequence(1, "b"), sequence(7, "a")
    queue = queue_of(sequence(0, "a"), gone, sequence(2, "c"))
    queue.push_preempted(back)
    queue.remove(gone)
    queue.remove(back)
    assert len(queue) == 2
    assert drained(queue) == [0, 2]
    with pytest.raises(ValueError):
        queue.remove(gone)


def test_nobody_waits_in_an_empty_queue():
    queue = queue_of(sequence(0))
    queue.pop()
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.head()
