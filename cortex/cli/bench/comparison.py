"""Two runs side by side, figure by figure, with what can be said given their noise. Pure.

Repeats show the noise: where the ranges of two runs overlap, they are not told apart. Of equal
distributions three repeats each lie apart by chance in one figure of ten, five in one of a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from cortex.cli.bench.statistics import Spread

# What is compared, and whether more of it is better.
COMPARED = {
    "requests_s": True,
    "output_tokens_s": True,
    "goodput_s": True,
    "ttft_p50": False,
    "ttft_p99": False,
    "tpot_p50": False,
    "tpot_p99": False,
    "itl_p99": False,
    "e2el_p50": False,
    "e2el_p99": False,
}


class Verdict(Enum):
    BETTER = "better"
    WORSE = "worse"
    SAME = "within noise"
    UNKNOWN = "noise not known"  # a single repeat on either side shows none


@attrs.frozen
class Compared:
    """``ratio`` is now over before; ``loss`` the part by which it is worse, negative if better."""

    cell: str
    figure: str
    before: Spread
    now: Spread
    verdict: Verdict

    @property
    def ratio(self) -> float:
        return self.now.median / self.before.median

    @property
    def loss(self) -> float:
        return 1 - self.ratio if COMPARED[self.figure] else self.ratio - 1


@attrs.frozen
class Measured:
    """One cell of a run: its figures over ``repeats``."""

    repeats: int
    figures: Mapping[str, Spread]


def compare(before: Mapping[str, Measured], now: Mapping[str, Measured]) -> list[Compared]:
    """The figures of the cells that both runs have, in the order of *now*."""
    found: list[Compared] = []
    for cell, measured in now.items():
        known = before.get(cell)
        if known is None:
            continue
        single = min(known.repeats, measured.repeats) < 2
        for figure in COMPARED:
            one, other = known.figures.get(figure), measured.figures.get(figure)
            if one is not None and other is not None and one.median > 0:
                verdict = Verdict.UNKNOWN if single else _verdict(figure, one, other)
                found.append(Compared(cell, figure, one, other, verdict))
    return found


def _verdict(figure: str, before: Spread, now: Spread) -> Verdict:
    if now.least <= before.most and before.least <= now.most:
        return Verdict.SAME
    return Verdict.BETTER if (now.median > before.median) == COMPARED[figure] else Verdict.WORSE


def beyond(compared: list[Compared], tolerance: float) -> list[Compared]:
    """What is worse by more than the part *tolerance*, and not by what is known to be noise."""
    return [each for each in compared if each.loss > tolerance and each.verdict is not Verdict.SAME]
