"""Look at something again and again, less often while it fails."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import attrs
import trio

S = TypeVar("S")


@attrs.frozen
class Cadence:
    """When to look again. Seconds."""

    interval: float = 2.0  # after a success
    ceiling: float = 60.0  # after ever so many failures
    jitter: float = 0.1  # a fleet must not fall into step

    def pause(self, failures: int, spread: float) -> float:
        """Seconds to wait after *failures* in a row; *spread* is in -1..1."""
        base = min(self.interval * 2.0 ** min(failures, 32), max(self.ceiling, self.interval))
        return base * (1 + self.jitter * spread)


async def poll(
    probe: Callable[[], Awaitable[S]],
    publish: Callable[[S | None], None],
    *,
    weather: tuple[type[Exception], ...],
    cadence: Cadence | Callable[[], Cadence],
    wake: Callable[[], trio.Event] | None = None,
) -> NoReturn:
    """Probe for ever; publish each state, or None while there is none to be had.

    Only *weather* is expected to go wrong: anything else is a bug, and ends the process. *wake*
    gives, for each pause, an event that cuts it short, *cadence* may give the one that holds now.
    """
    failures = 0
    while True:
        try:
            state = await probe()  # brings its own deadline
        except weather:
            failures += 1
            publish(None)
        else:
            failures = 0
            publish(state)
        current = cadence() if callable(cadence) else cadence
        pause = current.pause(failures, random.uniform(-1, 1))
        if wake is None:
            await trio.sleep(pause)
        else:
            with trio.move_on_after(pause):
                await wake().wait()
