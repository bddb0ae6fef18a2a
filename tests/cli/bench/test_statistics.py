"""Figures from samples whose times are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.cli.bench.statistics import (
    Objectives,
    Sample,
    figures,
    percentile,
    spreads,
)


def sample(
    started: float, first: float | None, ended: float, tokens: int = 5, error: str | None = None
) -> Sample:
    gaps = () if first is None else ((ended - first) / 4,) * 4
    return Sample(started, ended, first, gaps, 10, 4, tokens, error)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 2.5), (90, 3.7), (99, 3.97), (100, 4.0)]
)
def test_a_percentile_lies_between_two_values_by_distance(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(expected)


def test_a_percentile_of_one_value_is_it_and_of_none_is_none() -> None:
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_within_its_values(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    slack = 1e-9 * ordered[-1]
    assert ordered[0] - slack <= percentile(ordered, percent) <= ordered[-1] + slack


def test_the_times_of_a_request() -> None:
    one = sample(10.0, 10.5, 12.5, tokens=5)
    assert (one.ttft, one.e2el, one.tpot, one.speed) == (0.5, 2.5, 0.5, 2.0)


def test_one_token_has_no_time_after_the_first() -> None:
    assert sample(0, 1, 1, tokens=1).tpot is None
    assert Sample(0, 1).tpot is None


def test_the_figures_of_a_stream() -> None:
    found = figures([sample(0, 0.1, 0.5), sample(0, 0.3, 1.1), sample(1, 1.2, 1.6)], 2.0)
    assert (found["requests"], found["errors"]) == (3, 0)
    assert (found["requests_s"], found["output_tokens_s"]) == (1.5, 7.5)
    assert found["total_tokens_s"] == 22.5
    assert (found["prompt_tokens"], found["cached_tokens"]) == (10, 4)
    assert found["ttft_p50"] == pytest.approx(200)
    assert found["ttft_mean"] == pytest.approx(200)
    assert found["tpot_p50"] == pytest.approx(100)
    assert found["itl_p99"] == pytest.approx(200)
    assert found["e2el_p50"] == pytest.approx(600)
    assert "goodput_s" not in found


def test_what_failed_counts_as_an_error_alone() -> None:
    found = figures([sample(0, 0.1, 0.5), sample(0, 0.1, 60.0, error="broke off")], 1.0)
    assert (found["requests"], found["errors"], found["requests_s"]) == (2, 1, 1.0)
    assert found["e2el_p99"] == 500


def test_nothing_whole_has_no_times() -> None:
    found = figures([sample(0, None, 1.0, error="500 x")], 1.0)
    assert found == {"requests": 1, "errors": 1, "requests_s": 0}


def test_an_answer_without_a_stream_has_its_end_only() -> None:
    names = figures([sample(0, None, 0.5)], 1.0).keys()
    assert {name.partition("_")[0] for name in names} >= {"e2el"}
    assert not any(name.startswith(("ttft", "tpot", "itl")) for name in names)


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        (Objectives(ttft=0.2), 1),
        (Objectives(ttft=0.5), 2),
        (Objectives(tpot=0.15), 1),
        (Objectives(ttft=0.5, e2el=1.0), 1),
        (Objectives(e2el=0.1), 0),
    ],
)
def test_goodput_counts_what_keeps_all_objectives(objectives: Objectives, good: int) -> None:
    samples = [sample(0, 0.1, 0.5), sample(0, 0.3, 1.1), sample(0, 0, 0, error="x")]
    assert figures(samples, 2.0, objectives)["goodput_s"] == good / 2


def test_the_spread_of_repeats() -> None:
    found = spreads([{"a": 10.0, "b": 1}, {"a": 8.0}, {"a": 12.0}])
    assert found.keys() == {"a"}
    assert (found["a"].median, found["a"].least, found["a"].most) == (10, 8, 12)
    assert found["a"].noise == 0.2
    assert spreads([]) == {}
