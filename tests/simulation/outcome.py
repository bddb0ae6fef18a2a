"""What came of a simulation: every request's fate, and what it cost."""

from __future__ import annotations

import attrs
import trio

from simulation.neurons import SimulatedNeuron
from simulation.scenario import Arrival

SERVED = "served"


@attrs.frozen
class Fate:
    arrival: Arrival
    end: str  # served, or the code of the error
    waited: float  # seconds until it got its seat, or its refusal


@attrs.define(eq=False)
class Outcome:
    name: str
    fates: list[Fate] = attrs.field(factory=list)
    loads: int = 0
    unloads: int = 0
    out_of_memory: int = 0
    restarts: int = 0

    def add(self, arrival: Arrival, end: str, began_at: float | None = None) -> None:
        at = trio.current_time() if began_at is None else began_at
        self.fates.append(Fate(arrival, end, at - arrival.at))

    def take(self, neurons: dict[str, SimulatedNeuron]) -> Outcome:
        self.loads = sum(each.loads for each in neurons.values())
        self.unloads = sum(each.unloads for each in neurons.values())
        self.out_of_memory = sum(each.out_of_memory for each in neurons.values())
        self.restarts = sum(each.restarts for each in neurons.values())
        return self

    @property
    def served(self) -> int:
        return sum(fate.end == SERVED for fate in self.fates)

    @property
    def refused(self) -> int:
        return len(self.fates) - self.served

    def refusals(self) -> dict[str, int]:
        """Refusals by code."""
        found: dict[str, int] = {}
        for fate in self.fates:
            if fate.end != SERVED:
                found[fate.end] = found.get(fate.end, 0) + 1
        return found

    def wait(self, share: float) -> float:
        """Seconds within which *share* of the served requests got a seat."""
        waits = sorted(fate.waited for fate in self.fates if fate.end == SERVED)
        return waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0

    def mean_wait(self) -> float:
        waits = [fate.waited for fate in self.fates if fate.end == SERVED]
        return sum(waits) / len(waits) if waits else 0.0
