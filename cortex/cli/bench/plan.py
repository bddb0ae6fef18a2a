"""What is measured, and what comes of it: values only."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cortex.cli.bench.statistics import Figures, Objectives, Spread, spreads

BUSY = 0.7  # of a core: from there on this process may be what is measured
LEAST_REQUESTS = 16


@attrs.frozen
class Cell:
    """One measurement: how many at a time, and tokens of prompt and completion."""

    concurrency: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def name(self) -> str:
        return f"c={self.concurrency} {self.prompt_tokens}+{self.completion_tokens}"


@attrs.frozen
class Amount:
    """When a measurement ends: after so many requests, or seconds, whichever comes first."""

    requests: int | None = None
    seconds: float | None = None


@attrs.frozen
class Plan:
    """What is measured. ``amount`` empty means so many requests as its concurrency calls for."""

    cells: Sequence[Cell]
    repeats: int = 3
    amount: Amount = attrs.field(factory=Amount)
    warm_up: int | None = None  # requests; None is one for each at a time
    shared_prefix: int = 0  # tokens that all prompts begin with
    seed: int = 0
    objectives: Objectives = attrs.field(factory=Objectives)


@attrs.frozen
class CellResult:
    """``repeats`` hold the figures of each; ``errors`` how often each kind came in all of them."""

    cell: Cell
    repeats: Sequence[Figures]
    errors: dict[str, int]
    cpu: float  # the most of any repeat

    @property
    def spreads(self) -> dict[str, Spread]:
        return spreads(self.repeats)


def amount_for(plan: Plan, cell: Cell) -> Amount:
    if plan.amount.requests is None and plan.amount.seconds is None:
        return Amount(max(LEAST_REQUESTS, 4 * cell.concurrency))
    return plan.amount
