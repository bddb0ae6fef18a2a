"""The gateway's metric families, on a registry its owner injects.

Names are the original's, which dashboards read (`reference/original.md` 3). Labels are resolved
ids: a request whose model resolves to nothing counts under `UNKNOWN`, and so does one that reached
no node; no client can make up a label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.gateway.fleet import NodeSnapshot
from cortex.service import accumulators
from cortex.service.accumulators import Count, Distribution, Family, Level
from cortex.wire import neuron as wire

UNKNOWN = "unknown"

REPLICA = ("model", "node")
# Upper bounds in seconds. Durations and first tokens as the original's dashboards have them, with
# quicker ones in front: a small model answers in milliseconds.
DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
INTER_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
STAGE_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
LOAD_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
SPEED_BUCKETS = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800)  # tokens per second


def _counter(registry: CollectorRegistry, name: str, text: str, *more: str) -> Family[Count]:
    return accumulators.counter(registry, name, text, (*REPLICA, *more))


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...], *more: str
) -> Family[Distribution]:
    return accumulators.histogram(registry, name, text, (*REPLICA, *more), buckets)


class _Held(AbstractContextManager[None]):
    """One more of *level* within the block."""

    __slots__ = ("_level",)

    def __init__(self, level: Level) -> None:
        self._level = level

    def __enter__(self) -> None:
        self._level.value += 1

    def __exit__(self, *exc: object) -> None:
        self._level.value -= 1


class GatewayMetrics:
    """Recorders for what the request core, the loads and the evictor see."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.registry = registry
        self._requests = _counter(
            r, "cortex_requests", "Requests answered, by HTTP status.", "code", "dialect"
        )
        self._durations = _histogram(
            r,
            "cortex_request_duration_seconds",
            "From a request's headers to the end of its answer, streams included.",
            DURATION_BUCKETS,
        )
        self._errors = _counter(
            r, "cortex_request_errors", "Requests that ended in an error, by its code.", "reason"
        )
        self._first_tokens = _histogram(
            r,
            "cortex_time_to_first_token_seconds",
            "From a request's headers to its first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._inter_tokens = _histogram(
            r,
            "cortex_inter_token_seconds",
            "Between two frames with tokens of one stream.",
            INTER_TOKEN_BUCKETS,
        )
        self._speeds = _histogram(
            r,
            "cortex_tokens_per_second",
            "Completion tokens per second of decoding.",
            SPEED_BUCKETS,
        )
        self._prompt = _counter(r, "cortex_prompt_tokens", "Prompt tokens processed.")
        self._completion = _counter(r, "cortex_completion_tokens", "Completion tokens generated.")
        self._cached = _counter(
            r, "cortex_cached_prompt_tokens", "Prompt tokens found in a prefix cache."
        )
        self._stages = _histogram(
            r, "cortex_stage_seconds", "Where requests spend their time.", STAGE_BUCKETS, "stage"
        )
        self._in_flight = accumulators.gauge(r, "cortex_in_flight", "Requests under way.", REPLICA)
        self._disconnects = _counter(
            r, "cortex_client_disconnects", "Clients that left before their answer was complete."
        )
        self._retries = _counter(
            r,
            "cortex_upstream_retries",
            "Requests sent again, before their first byte, after this.",
        )
        self._cold_starts = _counter(r, "cortex_cold_starts", "Loads because of a request.")
        self._loads = _histogram(
            r, "cortex_model_load_seconds", "Loads, from order to loaded.", LOAD_BUCKETS
        )
        self._load_failures = _counter(r, "cortex_model_load_failures", "Loads that failed.")
        self._evictions = _counter(
            r, "cortex_evictions", "Models unloaded by the gateway, by why.", "reason"
        )
        self._readiness = accumulators.counter(
            r,
            "cortex_readiness_probes",
            "One-token requests of the gateway's own, for /readyz.",
            ("result",),
        )
        self.output_at = -math.inf  # trio's clock, when output of a model last passed
        self._pulls = accumulators.counter(
            r, "cortex_pulls", "Pulls ordered here, by how they ended.", ("node", "result")
        )
        self._spend = accumulators.counter(
            r, "cortex_spend_tokens", "Tokens charged to a key, by kind.", ("key", "model", "kind")
        )

    # The life of a request, in order

    def in_flight(self, model: str, node: str) -> AbstractContextManager[None]:
        """Count one request under way for as long as the block lasts."""
        return _Held(self._in_flight(model, node))

    def stage(self, model: str, node: str, stage: str, seconds: float) -> None:
        """*stage* is one of those in `stages`, which add up to the request's duration."""
        self._stages(model, node, stage).observe(seconds)

    def retry(self, model: str, node: str) -> None:
        """A request failed at *node* before its first byte and goes elsewhere."""
        self._retries(model, node).inc()

    def first_token(self, model: str, node: str, seconds: float) -> None:
        self._first_tokens(model, node).observe(seconds)

    def inter_tokens(self, model: str, node: str) -> Distribution:
        """For the seconds between two frames with output of one stream."""
        return self._inter_tokens(model, node)

    def tokens(self, model: str, node: str, prompt: int, completion: int, cached: int) -> None:
        self._prompt(model, node).inc(prompt)
        self._completion(model, node).inc(completion)
        self._cached(model, node).inc(cached)

    def spend(self, key: str, model: str, kind: str, tokens: int) -> None:
        """*key* is a key's name; *kind* is prompt, cached or completion."""
        self._spend(key, model, kind).inc(tokens)

    def tokens_per_second(self, model: str, node: str, value: float) -> None:
        self._speeds(model, node).observe(value)

    def disconnect(self, model: str, node: str) -> None:
        self._disconnects(model, node).inc()

    def error(self, model: str, node: str, reason: str) -> None:
        """*reason* is an error code of ours, never text from outside."""
        self._errors(model, node, reason).inc()

    def finished(self, model: str, node: str, dialect: str, code: int, seconds: float) -> None:
        self._requests(model, node, str(code), dialect).inc()
        self._durations(model, node).observe(seconds)

    # The life of a replica

    def cold_start(self, model: str, node: str) -> None:
        self._cold_starts(model, node).inc()

    def load_seconds(self, model: str, node: str, seconds: float) -> None:
        self._loads(model, node).observe(seconds)

    def load_failed(self, model: str, node: str) -> None:
        self._load_failures(model, node).inc()

    def eviction(self, model: str, node: str, reason: str) -> None:
        self._evictions(model, node, reason).inc()

    def readiness_probe(self, result: str) -> None:
        """*result* is one of `readiness.RESULTS`."""
        self._readiness(result).inc()

    def pull_ended(self, node: str, result: str) -> None:
        self._pulls(node, result).inc()

    def observe_fleet(self, nodes: Callable[[], Iterable[NodeSnapshot]]) -> None:
        """Show what *nodes* returns at each scrape. Once per registry."""
        self.registry.register(_FleetCollector(nodes))

    def observe_queue(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Show how many requests *waiting* says wait for each model. Once per registry."""
        text = "Requests that wait in the gateway for a seat."
        self.registry.register(
            _GaugeCollector("cortex_queue_waiting", text, ("model",), lambda: _by_name(waiting()))
        )

    def observe_certificate(self, expires_at: Callable[[], float]) -> None:
        """Show the Unix time that *expires_at* returns. Once per registry."""
        self.registry.register(
            _GaugeCollector(
                "cortex_tls_certificate_expiry_timestamp_seconds",
                "When the certificate of the API ceases to be valid.",
                (),
                lambda: [((), expires_at())],
            )
        )


def _by_name(values: Mapping[str, int]) -> Iterator[tuple[tuple[str], float]]:
    return (((name,), value) for name, value in values.items())


@attrs.frozen(eq=False)
class _GaugeCollector(Collector):
    """One gauge, read from its owner at each scrape: label values and value of each sample."""

    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[], Iterable[tuple[tuple[str, ...], float]]]

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for values, value in self.read():
            family.add_metric(values, value)
        return (family,)


@attrs.frozen(eq=False)
class _FleetCollector(Collector):
    """Gauges read off the fleet's snapshots; what a node has not measured has no sample."""

    nodes: Callable[[], Iterable[NodeSnapshot]]

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing to collect before the first scrape

    def collect(self) -> Iterable[Metric]:
        nodes = tuple(self.nodes())
        up = GaugeMetricFamily("cortex_neuron_up", "1 while the node is healthy.", labels=["node"])
        circuit = GaugeMetricFamily(
            "cortex_circuit_open",
            "1 while the node gets no requests, or one to try it, because they failed there.",
            labels=["node"],
        )
        status = GaugeMetricFamily(
            "cortex_model_status",
            "1 for the status a model has on a node.",
            labels=["model", "node", "status"],
        )
        for node in nodes:
            up.add_metric([node.name], float(node.healthy))
            circuit.add_metric([node.name], float(node.circuit != "closed"))
            for model in node.models:
                shown = model.status if node.healthy else "unreachable"
                status.add_metric([model.id, node.name, shown], 1.0)
        healthy = [node for node in nodes if node.healthy and node.health is not None]
        return itertools.chain(
            (up, circuit, status), _device_gauges(healthy), _model_gauges(healthy)
        )


_DEVICE_GAUGES: dict[str, tuple[str, Callable[[wire.DeviceHealth], int | None]]] = {
    "cortex_device_vram_used_mb": ("Device memory in use, MiB.", lambda d: d.vram_used_mb),
    "cortex_device_vram_free_mb": ("Device memory free, MiB.", lambda d: d.vram_free_mb),
    "cortex_device_utilization_pct": ("Device utilisation, percent.", lambda d: d.utilization_pct),
    "cortex_device_temp_c": ("Device temperature, Celsius.", lambda d: d.temp_c),
}
_MODEL_GAUGES: dict[str, tuple[str, Callable[[wire.ModelLoad], float | None]]] = {
    "cortex_model_in_flight": ("Requests a replica works on.", lambda m: m.in_flight),
    "cortex_model_queue_depth": ("Requests waiting at a replica.", lambda m: m.queue_depth),
    "cortex_model_max_in_flight": ("Requests it takes at a time.", lambda m: m.max_in_flight),
    "cortex_model_max_queue_depth": ("Requests it lets wait.", lambda m: m.max_queue_depth),
    "cortex_model_tok_s_prefill": ("Prefill speed, tokens/s.", lambda m: m.tok_s_prefill),
    "cortex_model_tok_s_decode": ("Decoding speed, tokens/s.", lambda m: m.tok_s_decode),
}


def _device_gauges(nodes: Iterable[NodeSnapshot]) -> Iterator[Metric]:
    for name, (text, read) in _DEVICE_GAUGES.items():
        family = GaugeMetricFamily(name, text, labels=["node", "device"])
        for node in nodes:
            for device in node.health.devices if node.health else ():
                value = read(device)
                if value is not None:
                    family.add_metric([node.name, str(device.index)], value)
        yield family


def _model_gauges(nodes: Iterable[NodeSnapshot]) -> Iterator[Metric]:
    for name, (text, read) in _MODEL_GAUGES.items():
        family = GaugeMetricFamily(name, text, labels=["node", "model"])
        for node in nodes:
            for load in node.health.models if node.health else ():
                value = read(load)
                if value is not None:
                    family.add_metric([node.name, load.id], value)
        yield family
