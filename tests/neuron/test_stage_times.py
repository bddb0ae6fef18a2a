"""Stages one after the other."""

from __future__ import annotations

from cortex.neuron.stage_times import StageTimes


def test_each_stage_has_its_time_and_one_that_comes_again_goes_on() -> None:
    now = 10.0
    times = StageTimes(lambda: now)
    times.end()
    times.enter("a")
    now = 11.0
    times.enter("a")
    now = 13.0
    times.enter("b")
    now = 14.0
    times.enter("a")
    now = 14.5
    times.end()
    now = 99.0
    times.end()
    assert times.seconds == {"a": 3.5, "b": 1.0}
