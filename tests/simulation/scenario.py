"""What happens in a simulation, all of it fixed by a seed: nodes, models, requests, mishaps."""

from __future__ import annotations

import random

import attrs

# Of a fleet put together over years: MiB of each device, and how many nodes of a hundred.
NODE_KINDS = (((24_000,), 40), ((48_000,), 25), ((24_000, 24_000), 20), ((80_000,), 15))
MODEL_KINDS = (((1_500, 6_000), 50), ((8_000, 20_000), 38), ((30_000, 70_000), 12))
SECONDS_PER_TOKEN = 0.02


@attrs.frozen
class NodeSpec:
    name: str
    devices: tuple[int, ...]  # MiB each
    bandwidth: float  # MiB/s of a load


@attrs.frozen
class ModelSpec:
    name: str
    mb: int
    pinned_on: tuple[str, ...] = ()


@attrs.frozen
class Arrival:
    at: float
    model: str
    seconds: float  # of service


@attrs.frozen
class Outage:
    """A node is down for *seconds*, and comes back without any model."""

    node: str
    at: float
    seconds: float


@attrs.frozen
class Mishaps:
    """Probabilities of each single poll, load and (slow) load."""

    lost_poll: float = 0.0
    failed_load: float = 0.0
    slow_load: float = 0.0  # five times as long


@attrs.frozen
class Scenario:
    seed: int
    nodes: tuple[NodeSpec, ...]
    models: tuple[ModelSpec, ...]
    arrivals: tuple[Arrival, ...]
    outages: tuple[Outage, ...] = ()
    mishaps: Mishaps = Mishaps()

    @property
    def seconds(self) -> float:
        return self.arrivals[-1].at if self.arrivals else 0.0


def make(
    seed: int,
    *,
    nodes: int,
    models: int,
    seconds: float,
    rate: float,
    agents: float = 0.5,
    skew: float = 1.0,
    outages: int = 0,
    pinned: int = 0,
    mishaps: Mishaps = Mishaps(),
) -> Scenario:
    """*rate* requests a second on average, the part *agents* of them in agents' bursts, whose
    models follow a Zipf distribution of exponent *skew*."""
    chance = random.Random(seed)
    fleet = tuple(
        NodeSpec(f"n{i:02}", _kind(chance, NODE_KINDS), chance.choice((500.0, 1000.0, 2000.0)))
        for i in range(nodes)
    )
    largest = max(max(node.devices) for node in fleet)
    catalogue = []
    for i in range(models):
        low, high = _kind(chance, MODEL_KINDS)
        mb = min(chance.randint(low, high), largest)
        able = [node.name for node in fleet if max(node.devices) >= mb]
        pin = (chance.choice(able),) if i >= models - pinned else ()
        catalogue.append(ModelSpec(f"m{i:03}", mb, pin))
    chance.shuffle(catalogue)
    names = [model.name for model in catalogue]
    arrivals = _lone(chance, names, skew, seconds, rate * (1 - agents))
    arrivals += _bursts(chance, catalogue, skew, seconds, rate * agents)
    down = tuple(
        Outage(chance.choice(fleet).name, chance.uniform(0, seconds), chance.uniform(20, 200))
        for _ in range(outages)
    )
    ordered = tuple(sorted(arrivals, key=lambda arrival: (arrival.at, arrival.model)))
    return Scenario(seed, fleet, tuple(catalogue), ordered, down, mishaps)


def _kind(chance: random.Random, kinds):
    return chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]


def _zipf(count: int, skew: float) -> list[float]:
    return [1 / (rank + 1) ** skew for rank in range(count)]


def _lone(chance, names, skew, seconds, rate) -> list[Arrival]:
    """Single requests of many people."""
    weights = _zipf(len(names), skew)
    found, at = [], 0.0
    while rate and (at := at + chance.expovariate(rate)) < seconds:
        model = chance.choices(names, weights)[0]
        found.append(Arrival(at, model, SECONDS_PER_TOKEN * chance.randint(50, 800)))
    return found


def _bursts(chance, catalogue, skew, seconds, rate) -> list[Arrival]:
    """Agents at work: a session of turns, each of a request to a main model and often some short
    ones to a small model beside it."""
    small = sorted(catalogue, key=lambda model: model.mb)[: max(1, len(catalogue) // 3)]
    turns, per_turn = 15, 2.0
    weights, light = _zipf(len(catalogue), skew), _zipf(len(small), skew)
    found, start = [], 0.0
    while rate and (start := start + chance.expovariate(rate / (turns * per_turn))) < seconds:
        main = chance.choices(catalogue, weights)[0].name
        helper = chance.choices(small, light)[0].name
        at = start
        for _ in range(chance.randint(1, 2 * turns)):
            found.append(Arrival(at, main, SECONDS_PER_TOKEN * chance.randint(100, 1000)))
            for _ in range(chance.choice((0, 0, 1, 3))):
                later = at + chance.uniform(0, 3)
                found.append(Arrival(later, helper, SECONDS_PER_TOKEN * chance.randint(10, 60)))
            at += chance.uniform(3, 30)
    return [arrival for arrival in found if arrival.at < seconds]
