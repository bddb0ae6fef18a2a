from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.auth.limits import PERIODS_KEPT, Bucket, Budget, day_of, period_of


def test_a_bucket_is_full_at_first_and_fills_evenly():
    bucket = Bucket(60)
    assert bucket.wait(60, 0.0) == 0
    bucket.take(60, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait(1, 0.5) == pytest.approx(0.5)
    assert bucket.wait(1, 1.0) == 0
    assert bucket.full_in(1.0) == pytest.approx(59.0)


def test_a_debt_is_paid_by_waiting():
    bucket = Bucket(60)
    bucket.take(90, 0.0)
    assert bucket.remaining(0.0) == -30
    assert bucket.wait(1, 0.0) == pytest.approx(31.0)


def test_more_than_it_holds_is_taken_from_a_full_bucket():
    bucket = Bucket(60)
    assert bucket.wait(1000, 0.0) == 0
    bucket.take(1000, 0.0)
    assert bucket.wait(1000, 0.0) == pytest.approx(1000.0)


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_no_minute_lets_more_through_than_a_full_bucket_and_its_refill(capacity, steps):
    """The oracle: all that was taken in any span, against what a bucket can give in it."""
    bucket, now, taken = Bucket(capacity), 0.0, []
    for pause, amount in steps:
        now += pause
        amount = min(amount, capacity)
        if bucket.wait(amount, now) <= 1e-9:
            bucket.take(amount, now)
            taken.append((now, amount))
    for begin, (start, _) in enumerate(taken):
        for end in range(begin, len(taken)):
            span = taken[end][0] - start
            total = sum(amount for _, amount in taken[begin : end + 1])
            assert total <= capacity + span * capacity / 60 + 1e-6


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80))))
def test_a_budget_counts_what_was_used_and_holds_what_is_expected(limit, requests):
    budget, used, held = Budget(limit, "day", "2026-11-27"), 0, []
    for expected, actual in requests:
        assert budget.left("2026-11-27") == limit - used - sum(each for each, _ in held)
        budget.hold(expected)
        held.append((expected, actual))
        if len(held) > 2:
            ended = held.pop(0)
            budget.settle(*ended, "2026-11-27")
            used += ended[1]
    for each in held:
        budget.settle(*each, "2026-11-27")
    assert budget.left("2026-11-27") == limit - sum(actual for _, actual in requests)


@pytest.mark.parametrize(
    ("period", "day", "left"),
    [
        ("day", "2026-11-27", 40),
        ("day", "2026-11-28", 100),
        ("month", "2026-11-30", 40),
        ("month", "2026-12-01", 100),
    ],
)
def test_a_budget_begins_anew_with_its_period(period, day, left):
    budget = Budget(100, period, period_of("2026-11-27", period), used=60)
    assert budget.left(day) == left


def test_what_ends_in_a_new_period_is_counted_there():
    budget = Budget(100, "day", "2026-11-27", used=60)
    budget.hold(30)
    budget.settle(30, 25, "2026-11-28")
    assert budget.left("2026-11-28") == 75


def test_days_are_utc():
    assert day_of(1795737599.9) == "2026-11-26"
    assert day_of(1795737600.0) == "2026-11-27"


def test_a_day_that_a_clock_set_wrong_brings_back_has_no_new_budget():
    budget = Budget(100, "day", "2026-11-27", used=60)
    assert budget.left("2026-11-28") == 100
    budget.settle(0, 10, "2026-11-28")
    assert [budget.left(day) for day in ("2026-11-27", "2026-11-28")] == [40, 90]
    for number in range(1, 29):  # what is remembered is bounded
        budget.settle(0, number, f"2027-01-{number:02}")
    assert len(budget._before) == PERIODS_KEPT
