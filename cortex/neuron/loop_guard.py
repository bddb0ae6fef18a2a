"""How often a thing may be tried again before it is given up."""

from __future__ import annotations

import attrs

LIMIT = 4
WINDOW = 600.0  # seconds


@attrs.define(eq=False)
class LoopGuard:
    """Allows *limit* attempts in any *window* seconds. ``times`` are those of the last ones."""

    limit: int = LIMIT
    window: float = WINDOW
    times: tuple[float, ...] = ()

    def allow(self, now: float) -> bool:
        """Whether one more attempt at *now* is within the limit; if so, it is counted."""
        recent = tuple(t for t in self.times if 0 <= now - t < self.window)
        allowed = len(recent) < self.limit
        self.times = (*recent, now) if allowed else recent
        return allowed
