"""Virtual time, and tasks that take turns in the same order each time."""

from __future__ import annotations

import random
import time
from typing import Protocol

import trio
import trio.testing

from simulation.outcome import Outcome
from simulation.scenario import Scenario


class Runner(Protocol):
    scenario: Scenario

    async def run(self) -> Outcome: ...


def simulate(runner: Runner) -> tuple[Outcome, float]:
    """The outcome, which the scenario's seed decides, and the seconds of CPU it took."""
    core = trio._core._run
    before, core._ALLOW_DETERMINISTIC_SCHEDULING = core._ALLOW_DETERMINISTIC_SCHEDULING, True
    core._r.seed(runner.scenario.seed)
    random.seed(runner.scenario.seed)  # the poller's jitter
    started = time.process_time()
    try:
        outcome = trio.run(runner.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING = before
    return outcome, time.process_time() - started
