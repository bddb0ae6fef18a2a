"""Rates and budgets as pure state machines: a time in, a verdict out. They know no clock."""

from __future__ import annotations

import datetime
import functools

import attrs

MINUTE = 60.0  # seconds
DAY = 86400  # seconds; Unix time has no others
PERIODS_KEPT = 4  # of a budget, for a clock that is set back


@attrs.frozen
class Limits:
    """Requests and tokens a minute, and tokens a ``period`` (day or month); None is no limit."""

    rpm: int | None = None
    tpm: int | None = None
    budget: int | None = None
    period: str | None = None

    def __bool__(self) -> bool:
        return self.rpm is not None or self.tpm is not None or self.budget is not None


@attrs.define
class Bucket:
    """*capacity* a minute, refilled evenly; full at the start.

    What is known only afterwards is corrected then, so that the level may fall below zero: such a
    debt is paid by waiting. Times are seconds of one monotonic clock.
    """

    capacity: float
    level: float = attrs.field(init=False)
    seen: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.level = self.capacity

    def remaining(self, now: float) -> float:
        """What could be taken at *now*; less than zero is a debt."""
        if self.seen is not None:
            refill = (now - self.seen) * self.capacity / MINUTE
            self.level = min(self.capacity, self.level + max(0.0, refill))
        self.seen = now
        return self.level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until *amount* can be taken. More than the capacity never could be: it is taken
        from a full bucket."""
        missing = min(amount, self.capacity) - self.remaining(now)
        return max(0.0, missing * MINUTE / self.capacity)

    def take(self, amount: float, now: float) -> None:
        """Take *amount*, whether it is there or not; a negative one is given back."""
        self.level = min(self.capacity, self.remaining(now) - amount)

    def full_in(self, now: float) -> float:
        """Seconds until it is full again."""
        return (self.capacity - self.remaining(now)) * MINUTE / self.capacity


@attrs.define
class Budget:
    """*limit* tokens a calendar day or month in UTC. ``used`` is what was counted in the period
    ``began``, ``held`` what requests under way are expected to use.

    A clock that is set may bring a period back; what was counted in it counts again then."""

    limit: int
    period: str  # day or month
    began: str
    used: int = 0
    held: int = 0
    _before: dict[str, int] = attrs.field(factory=dict, init=False)  # used in the last periods

    def left(self, day: str) -> int:
        """Tokens that may still be used at *day* (``2026-11-27``)."""
        began = period_of(day, self.period)
        if began != self.began:
            self._before[self.began] = self.used
            self.began, self.used = began, self._before.pop(began, 0)
            while len(self._before) > PERIODS_KEPT:
                del self._before[next(iter(self._before))]
        return self.limit - self.used - self.held

    def hold(self, tokens: int) -> None:
        self.held += tokens

    def settle(self, held: int, used: int, day: str) -> None:
        """A request has ended at *day*: what was *held* for it gives way to what it *used*."""
        self.left(day)
        self.held -= held
        self.used += used


def day_of(unix: float) -> str:
    """The day in UTC at *unix* seconds, as ``2026-11-27``."""
    return _day(int(unix // DAY))


@functools.lru_cache(maxsize=64)
def _day(number: int) -> str:
    return datetime.datetime.fromtimestamp(number * DAY, datetime.UTC).strftime("%Y-%m-%d")


def period_of(day: str, period: str) -> str:
    """The day, or the month, that *day* belongs to, by its first letters."""
    return day[:7] if period == "month" else day
