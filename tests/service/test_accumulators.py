from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cortex.service import accumulators
from cortex.service.metrics import render

BOUNDS = (0.001, 0.01, 0.1, 0.25, 1, 2.5, 10)
LABELS = ("model", "node")


def without_created(text: bytes) -> list[str]:
    """prometheus_client also shows when it made each child; nobody reads that."""
    return [line for line in text.decode().splitlines() if "_created" not in line]


def oracle() -> tuple[CollectorRegistry, Counter, Gauge, Histogram]:
    registry = CollectorRegistry()
    return (
        registry,
        Counter("c", "Counts.", LABELS, registry=registry),
        Gauge("g", "Goes up and down.", LABELS, registry=registry),
        Histogram("h", "Spreads.", LABELS, buckets=BOUNDS, registry=registry),
    )


def ours():
    registry = CollectorRegistry()
    return (
        registry,
        accumulators.counter(registry, "c", "Counts.", LABELS),
        accumulators.gauge(registry, "g", "Goes up and down.", LABELS),
        accumulators.histogram(registry, "h", "Spreads.", LABELS, BOUNDS),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_exposition_is_prometheus_clients_own_to_the_letter(seed):
    chance = random.Random(seed)
    expected, count, level, spread = oracle()
    registry, *families = ours()
    values = [*BOUNDS, 0.0, -1.0, 1e-9, 1e9, *(chance.expovariate(1) for _ in range(50))]
    for value in chance.sample(values, len(values)):
        labels = chance.choice(["m", 'odd "\\\n']), chance.choice(["a", "b"])
        count.labels(*labels).inc(abs(value))
        level.labels(*labels).inc(value)
        spread.labels(*labels).observe(value)
        families[0](*labels).inc(abs(value))
        families[1](*labels).inc(value)
        families[2](*labels).observe(value)
    families[2]("m", "at once").observe(0.25, times=3)
    for _ in range(3):
        spread.labels("m", "at once").observe(0.25)
    level.labels("m", "a").dec(2)
    level.labels("m", "b").set(7)
    families[1]("m", "a").inc(-2)
    families[1]("m", "b").set(7)
    assert without_created(render(registry)) == without_created(render(expected))


def test_without_children_a_family_is_described_and_has_no_samples():
    assert without_created(render(ours()[0])) == without_created(render(oracle()[0]))


def test_a_name_is_taken_once():
    registry, *_ = ours()
    with pytest.raises(ValueError, match="Duplicated"):
        accumulators.counter(registry, "c", "Again.", LABELS)


def test_the_labels_must_be_all_there():
    _, count, *_ = ours()
    with pytest.raises(ValueError, match="2 labels"):
        count("m")


@pytest.mark.parametrize("bounds", [(), (2, 1), (1, 1)])
def test_bounds_that_do_not_ascend_are_refused(bounds):
    with pytest.raises(ValueError, match="ascend"):
        accumulators.histogram(CollectorRegistry(), "h", "x", LABELS, bounds)
