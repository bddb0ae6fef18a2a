"""Prometheus exposition of a registry that its owner injects; nothing is process-global."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import attrs
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from cortex.service import logs, stamp

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(registry: CollectorRegistry) -> bytes:
    """All samples of *registry* in Prometheus' text format."""
    return generate_latest(registry)


def add_build_info(registry: CollectorRegistry, name: str, version: str) -> None:
    """A gauge *name*, always 1, whose labels say what runs."""
    build = stamp.running()
    labels = ["version", "python", "commit", "flavour"]
    gauge = Gauge(name, "What runs here.", labels, registry=registry)
    python = platform.python_version()
    gauge.labels(version, python, build.short() or "unknown", build.flavour).set(1)


def add_process(registry: CollectorRegistry) -> None:
    """The usual ``process_*``: memory, CPU seconds, descriptors, start. On Linux only."""
    ProcessCollector(registry=registry)


@attrs.frozen(eq=False)
class _LogCollector(Collector):
    name: str

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            self.name, "Lines of the log that nobody took, and that were dropped.", logs.dropped()
        )


def add_log_count(registry: CollectorRegistry, name: str) -> None:
    """A counter *name* of the log lines that this process could not write."""
    registry.register(_LogCollector(name))
