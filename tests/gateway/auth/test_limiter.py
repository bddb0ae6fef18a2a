from __future__ import annotations

import attrs
import pytest

from cortex.errors import BudgetSpent, RateLimited
from cortex.gateway.auth.limiter import Limiter
from cortex.gateway.auth.limits import Limits

DAY = 86400.0


@attrs.define
class Clocks:
    """Both clocks, moved together."""

    now: float = 1795737600.0  # 2026-11-27, midnight in UTC

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def limiter(clocks):
    return Limiter(lambda key, day: 0, clocks, clocks)


def prompt(tokens: int) -> dict[str, str]:
    return {"prompt": "x" * 4 * tokens}


def test_who_has_no_limits_is_not_looked_at(limiter):
    limiter.configure({"a": Limits(), "b": Limits(rpm=1)})
    assert limiter.of("a") is None
    assert limiter.of("nobody") is None
    assert limiter.of("b") is not None


def test_requests_a_minute(limiter, clocks):
    limiter.configure({"a": Limits(rpm=2)})
    allowance = limiter.of("a")
    for _ in range(2):
        limiter.admit(allowance, {})
    with pytest.raises(RateLimited, match="2 requests a minute") as refused:
        limiter.admit(allowance, {})
    assert refused.value.error_code == "rate_limit_exceeded"
    assert refused.value.retry_after == pytest.approx(30)
    clocks.now += 30
    limiter.admit(allowance, {})


def test_tokens_are_held_by_estimate_and_corrected_at_the_end(limiter):
    limiter.configure({"a": Limits(tpm=100)})
    allowance = limiter.of("a")
    held = limiter.admit(allowance, prompt(60))
    assert held == 60
    with pytest.raises(RateLimited, match="100 tokens a minute"):
        limiter.admit(allowance, prompt(60))
    limiter.settle(allowance, held, 10)  # it had fewer than was thought
    held = limiter.admit(allowance, prompt(60))
    limiter.settle(allowance, held, 180)  # and this one more
    with pytest.raises(RateLimited) as refused:
        limiter.admit(allowance, prompt(1))
    # 100 - 10 - 180 = -90, and a token is wanted.
    assert refused.value.retry_after == pytest.approx(91 * 60 / 100)


def test_what_is_refused_costs_nothing(limiter):
    limiter.configure({"a": Limits(rpm=10, tpm=100)})
    allowance = limiter.of("a")
    limiter.admit(allowance, prompt(100))
    for _ in range(20):
        with pytest.raises(RateLimited):
            limiter.admit(allowance, prompt(1))
    assert allowance.requests.remaining(limiter.clock()) == 9


def test_a_budget_ends_and_begins_anew_the_next_day(limiter, clocks):
    limiter.configure({"a": Limits(budget=100, period="day")})
    allowance = limiter.of("a")
    held = limiter.admit(allowance, prompt(60))
    with pytest.raises(BudgetSpent) as refused:
        limiter.admit(allowance, prompt(60))
    error = refused.value
    assert (error.error_code, error.retry_after, error.should_retry) == (
        "insufficient_quota",
        None,
        False,
    )
    limiter.settle(allowance, held, 100)
    with pytest.raises(BudgetSpent, match="100 tokens a day is used up"):
        limiter.admit(allowance, prompt(1))
    clocks.now += DAY
    limiter.admit(allowance, prompt(60))


def test_a_request_that_is_larger_than_what_is_left_is_told_so(limiter):
    limiter.configure({"a": Limits(budget=100, period="day")})
    allowance = limiter.of("a")
    limiter.settle(allowance, limiter.admit(allowance, prompt(60)), 60)
    with pytest.raises(BudgetSpent, match="has 40 left, and this request needs an estimated 41"):
        limiter.admit(allowance, prompt(41))
    assert limiter.admit(allowance, prompt(40)) == 40


def test_a_budget_starts_from_what_is_on_record(clocks):
    asked: list[tuple[str, str]] = []

    def spent(key: str, day: str) -> int:
        asked.append((key, day))
        return 95

    limiter = Limiter(spent, clocks, clocks)
    limiter.configure(
        {"d": Limits(budget=100, period="day"), "m": Limits(budget=100, period="month")}
    )
    assert asked == [("d", "2026-11-27"), ("m", "2026-11")]
    limiter.admit(limiter.of("d"), prompt(5))
    with pytest.raises(BudgetSpent):
        limiter.admit(limiter.of("d"), prompt(1))


def test_a_change_elsewhere_takes_nothing_back(limiter):
    limits = {"a": Limits(rpm=2)}
    limiter.configure(limits)
    allowance = limiter.of("a")
    limiter.admit(allowance, {})
    limiter.configure({**limits, "b": Limits(rpm=5)})
    assert limiter.of("a") is allowance
    limiter.configure({"a": Limits(rpm=3)})
    assert limiter.of("a").requests.capacity == 3
    limiter.configure({})
    assert limiter.of("a") is None
    limiter.settle(allowance, 0, 5)  # of a key that was revoked meanwhile
