"""How long steps take, counted in buckets. No torch."""

from __future__ import annotations

from bisect import bisect_left

# Seconds: from a small model on a GPU to a full chunk of a prompt on a CPU.
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class StepTimes:
    """``counts`` has one number for each of `BOUNDS`, of the steps that took at most so long and
    longer than the bound before, and one for the rest; ``seconds`` is the sum of all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
