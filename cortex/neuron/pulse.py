"""What a device's thread is at and since when, so that one that is stuck can be told from one that
works.

A call into a driver that never returns raises nothing and is cancelled by nothing. The thread shows
its pulse at each job, step and weight shard; one that has been at the same for longer than anything
takes is stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

STEP, JOB, LOAD = "step", "job", "load"
# Seconds without a sign. The longest steps are those that compile kernels (25 s) and large prompts'
# chunks on a slow CPU; after 300 s the gateway has given up on the stream by default. A load reads
# whole shards from disks that may be slow, and captures graphs.
BOUNDS = {STEP: 300.0, JOB: 300.0, LOAD: 900.0}


@attrs.define(eq=False)
class Pulse:
    """Written by the device's thread, read by any: one reference is exchanged for another."""

    _clock: Callable[[], float] = time.monotonic
    _at: tuple[str, float] | None = attrs.field(default=None, init=False)

    def at(self, what: str) -> None:
        """It begins *what*, or gets on with it."""
        self._at = (what, self._clock())

    def rest(self) -> None:
        """It waits for a job from now on, for as long as that takes."""
        self._at = None

    def stuck(self) -> str | None:
        """What it is stuck in and for how long, in words; None while all is well."""
        at = self._at
        if at is None:
            return None
        what, since = at
        silent = self._clock() - since
        return f"in a {what} for {silent:.0f} s" if silent > BOUNDS[what] else None
