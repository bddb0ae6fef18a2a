"""Seconds in buckets."""

from __future__ import annotations

from cortex.engine.step_times import BOUNDS, StepTimes


def test_a_bound_is_within_its_bucket_and_the_rest_has_one_of_its_own() -> None:
    times = StepTimes()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1):
        times.add(seconds)
    assert times.counts == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]
    assert times.seconds == sum((0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1], BOUNDS[-1] + 1))


def test_bounds_rise() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
