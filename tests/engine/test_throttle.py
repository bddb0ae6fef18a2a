"""Smaller steps after a failure, larger ones again after many successes."""

from __future__ import annotations

from cortex.engine.throttle import LIMIT, PATIENCE, Throttle


def test_a_failure_halves_what_was_tried_and_patience_doubles_it_again():
    throttle = Throttle(100)
    assert throttle.ran_out(40)  # less than the budget was planned, and even that was too much
    assert throttle.budget == 20
    for _ in range(PATIENCE - 1):
        throttle.went_well()
    assert throttle.budget == 20
    throttle.went_well()
    assert throttle.budget == 40
    for _ in range(2 * PATIENCE):
        throttle.went_well()
    assert throttle.budget == 100


def test_a_failure_starts_the_patience_anew():
    throttle = Throttle(100)
    throttle.ran_out(100)
    for _ in range(PATIENCE - 1):
        throttle.went_well()
    throttle.ran_out(50)
    throttle.went_well()
    assert throttle.budget == 25


def test_it_ends_at_one_token_and_gives_up_when_nothing_works():
    throttle = Throttle(4096)
    told = [throttle.ran_out(throttle.budget) for _ in range(LIMIT)]
    assert told == [True] * (LIMIT - 1) + [False]
    assert throttle.budget == 1
    throttle.went_well()
    assert throttle.ran_out(1)  # failures count in a row
