"""How large a step may be while memory is short. No torch, no clock."""

from __future__ import annotations

PATIENCE = 64  # steps that must go well before a larger one is tried
LIMIT = 16  # failures in a row: halving 4096 to 1 takes 12


class Throttle:
    """A step's budget in tokens: halved when memory ran out, doubled again when all goes well.

    ``budget`` is from 1 to *most*.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.budget = most
        self._failures = 0
        self._successes = 0

    def ran_out(self, tokens: int) -> bool:
        """A step of *tokens* tokens did not fit; False when it is of no use to go on."""
        self._failures += 1
        self._successes = 0
        self.budget = max(1, min(self.budget, tokens) // 2)
        return self._failures < LIMIT

    def went_well(self) -> None:
        """A step has been made."""
        self._failures = 0
        if self.budget < self.most:
            self._successes += 1
            if self._successes == PATIENCE:
                self._successes = 0
                self.budget = min(2 * self.budget, self.most)
