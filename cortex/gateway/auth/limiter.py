"""What each key may still use: rates a minute, and budgets a day or month. Owner of all that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from cortex.errors import BudgetSpent, RateLimited
from cortex.gateway.auth import estimate
from cortex.gateway.auth.limits import Bucket, Budget, Limits, day_of, period_of


@attrs.define(eq=False)
class Allowance:
    """One key's limits, with what is left of them."""

    limits: Limits
    requests: Bucket | None = None
    tokens: Bucket | None = None
    budget: Budget | None = None

    @property
    def counts_tokens(self) -> bool:
        return self.tokens is not None or self.budget is not None


def nothing_spent(key: str, day: str) -> int:
    return 0


@attrs.define(eq=False)
class Limiter:
    """``spent`` tells the tokens that a key's id has used since a day, where that is on record."""

    spent: Callable[[str, str], int] = nothing_spent
    clock: Callable[[], float] = trio.current_time
    wall: Callable[[], float] = time.time  # Unix seconds
    _allowances: dict[str, Allowance] = attrs.field(factory=dict, init=False)

    def configure(self, limits: Mapping[str, Limits]) -> None:
        """Hold the keys with these ids to these limits from now on; what those that had the same
        before have used counts on."""
        known = self._allowances
        self._allowances = {
            key: known[key] if key in known and known[key].limits == each else self._new(key, each)
            for key, each in limits.items()
            if each
        }

    def _new(self, key: str, limits: Limits) -> Allowance:
        budget = None
        if limits.budget is not None and limits.period is not None:
            began = period_of(day_of(self.wall()), limits.period)
            # Days sort as text: "2026-11" comes before all of November's.
            budget = Budget(limits.budget, limits.period, began, self.spent(key, began))
        return Allowance(
            limits,
            None if limits.rpm is None else Bucket(limits.rpm),
            None if limits.tpm is None else Bucket(limits.tpm),
            budget,
        )

    def of(self, key_id: str) -> Allowance | None:
        """The limits of a key; None when it has none."""
        return self._allowances.get(key_id)

    def admit(self, allowance: Allowance, body: dict[str, Any]) -> int:
        """Let a request with this upstream *body* through: the tokens held for it until `settle`.

        `RateLimited` when the key's rate does not allow it now (and nothing is taken),
        `BudgetSpent` when its budget does not.
        """
        now = self.clock()
        tokens = estimate.prompt_tokens(body) if allowance.counts_tokens else 0
        if allowance.budget is not None:
            _check(allowance.budget, tokens, day_of(self.wall()))
        for bucket, amount, what in (
            (allowance.requests, 1, "requests"),
            (allowance.tokens, tokens, "tokens"),
        ):
            wait = bucket.wait(amount, now) if bucket is not None else 0.0
            if wait > 0 and bucket is not None:
                raise RateLimited(
                    f"the API key is over its rate of {bucket.capacity:.0f} {what} a minute",
                    retry_after=wait,
                )
        if allowance.requests is not None:
            allowance.requests.take(1, now)
        if allowance.tokens is not None:
            allowance.tokens.take(tokens, now)
        if allowance.budget is not None:
            allowance.budget.hold(tokens)
        return tokens

    def settle(self, allowance: Allowance, held: int, used: int) -> None:
        """The request that *held* tokens has ended and *used* so many."""
        if allowance.tokens is not None:
            allowance.tokens.take(used - held, self.clock())
        if allowance.budget is not None:
            allowance.budget.settle(held, used, day_of(self.wall()))


def _check(budget: Budget, tokens: int, day: str) -> None:
    """`BudgetSpent` where *budget* has fewer than the *tokens* that a request is estimated at."""
    left = budget.left(day)
    if left >= tokens:
        return
    told = f"the API key's budget of {budget.limit} tokens a {budget.period}"
    if left > 0:
        raise BudgetSpent(f"{told} has {left} left, and this request needs an estimated {tokens}")
    raise BudgetSpent(f"{told} is used up")
