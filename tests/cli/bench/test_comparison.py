"""What is said of two runs, given their noise."""

from __future__ import annotations

import pytest

from cortex.cli.bench.comparison import Compared, Measured, Verdict, beyond, compare
from cortex.cli.bench.statistics import Spread


def measured(*values: float, figure: str = "ttft_p50") -> dict[str, Measured]:
    ordered = sorted(values)
    spread = Spread(ordered[len(ordered) // 2], ordered[0], ordered[-1])
    return {"c=1": Measured(len(values), {figure: spread})}


def one(compared: list[Compared]) -> Compared:
    (found,) = compared
    return found


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ((10, 11, 12), (11, 12, 13), Verdict.SAME),
        ((10, 11, 12), (12, 13, 14), Verdict.SAME),  # they touch
        ((10, 11, 12), (13, 14, 15), Verdict.WORSE),
        ((10, 11, 12), (7, 8, 9), Verdict.BETTER),
        ((10, 11, 12), (14,), Verdict.UNKNOWN),
        ((10,), (14, 15, 16), Verdict.UNKNOWN),
        ((10, 30), (15, 16), Verdict.SAME),  # one within the other
    ],
)
def test_runs_are_told_apart_where_their_ranges_are(
    before: tuple[float, ...], now: tuple[float, ...], verdict: Verdict
) -> None:
    assert one(compare(measured(*before), measured(*now))).verdict is verdict


def test_of_rates_more_is_better() -> None:
    before = measured(10, 11, figure="requests_s")
    now = measured(20, 22, figure="requests_s")
    better = one(compare(before, now))
    assert (better.verdict, better.ratio, better.loss) == (Verdict.BETTER, 2.0, -1.0)
    worse = one(compare(now, before))
    assert (worse.verdict, worse.loss) == (Verdict.WORSE, 0.5)


def test_only_what_both_have_is_compared() -> None:
    other = {"c=2": Measured(2, {"ttft_p50": Spread(1, 1, 1)})}
    assert compare(measured(1, 2), other) == []
    assert compare(measured(1, 2), measured(1, 2, figure="tpot_p50")) == []
    assert compare(measured(0, 0), measured(1, 2)) == []  # no ratio to nothing
    assert compare(measured(1, 2, figure="errors"), measured(1, 2, figure="errors")) == []


@pytest.mark.parametrize(
    ("now", "tolerance", "fails"),
    [
        ((13, 13.1), 0.1, True),
        ((13, 13.1), 0.5, False),  # worse, and no more than is allowed
        ((11.5, 30), 0.1, False),  # may be noise
        ((5, 5.1), 0.1, False),
        ((20,), 0.1, True),  # who asks for a limit with one repeat gets it
    ],
)
def test_a_limit_is_passed_by_what_is_worse_and_not_noise(
    now: tuple[float, ...], tolerance: float, fails: bool
) -> None:
    found = compare(measured(10, 11, 12), measured(*now))
    assert bool(beyond(found, tolerance)) is fails
