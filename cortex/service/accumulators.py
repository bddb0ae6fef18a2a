"""Counters, gauges and histograms for a hot path, shown to Prometheus by a collector.

prometheus_client's own take a lock for every change and check labels for every lookup: 1 to 2 us
each, and a request makes a dozen. These are plain numbers behind one dictionary lookup. They belong
to one thread, the one that also renders them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Level:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Distribution:
    """How many values lie up to each of *bounds* (ascending), and the sum of all."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # each bucket's own; the last is beyond all bounds
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times


C = TypeVar("C")  # Count, Level or Distribution


class Family(Collector, Generic[C]):
    """A metric and its children by labels: ``family("m", "a").inc()``. Made once per name."""

    def __init__(
        self,
        registry: CollectorRegistry,
        labels: Sequence[str],
        child: Callable[[], C],
        metric: Callable[[], Metric],
        show: Callable[[Metric, dict[str, str], C], None],
    ) -> None:
        self._labels = tuple(labels)
        self._child = child
        self._metric = metric
        self._show = show
        self._children: dict[tuple[str, ...], C] = {}
        registry.register(self)

    def __call__(self, *labels: str) -> C:
        child = self._children.get(labels)
        if child is None:
            if len(labels) != len(self._labels):
                raise ValueError(f"{len(self._labels)} labels are needed: {self._labels}")
            child = self._children[labels] = self._child()
        return child

    def describe(self) -> Iterable[Metric]:
        return (self._metric(),)

    def collect(self) -> Iterable[Metric]:
        metric = self._metric()
        for labels, child in self._children.items():
            self._show(metric, dict(zip(self._labels, labels, strict=True)), child)
        return (metric,)


def counter(
    registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]
) -> Family[Count]:
    """*name* is without the ``_total`` that Prometheus shows."""

    def show(metric: Metric, labels: dict[str, str], child: Count) -> None:
        metric.add_sample(f"{name}_total", labels, child.value)

    return Family(registry, labels, Count, lambda: CounterMetricFamily(name, text), show)


def gauge(
    registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]
) -> Family[Level]:
    def show(metric: Metric, labels: dict[str, str], child: Level) -> None:
        metric.add_sample(name, labels, child.value)

    return Family(registry, labels, Level, lambda: GaugeMetricFamily(name, text), show)


def histogram(
    registry: CollectorRegistry,
    name: str,
    text: str,
    labels: Sequence[str],
    bounds: Sequence[float],
) -> Family[Distribution]:
    """*bounds* ascend; what lies beyond the last counts too."""
    if list(bounds) != sorted(set(bounds)) or not bounds:
        raise ValueError("bounds must ascend")
    shown = [*map(floatToGoString, bounds), "+Inf"]

    def show(metric: Metric, labels: dict[str, str], child: Distribution) -> None:
        for bound, below in zip(shown, accumulate(child.counts), strict=True):
            metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, below)
        metric.add_sample(f"{name}_count", labels, sum(child.counts))
        metric.add_sample(f"{name}_sum", labels, child.sum)

    return Family(
        registry,
        labels,
        lambda: Distribution(bounds),
        lambda: HistogramMetricFamily(name, text),
        show,
    )
