"""What a neuron exports to Prometheus: vLLM's families under ``neuron_``.

Histograms and counters are fed by requests as they end; gauges are read from published snapshots
when they are scraped, so that a scrape never waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cortex.engine.engine import EngineStats
from cortex.engine.step_times import BOUNDS
from cortex.errors import CortexError
from cortex.neuron.embedding import Embedding, EmbeddingJob
from cortex.neuron.generation import Completion
from cortex.neuron.job import Job
from cortex.wire import neuron as wire
from cortex.wire.neuron import DeviceHealth, Model

# Seconds. First tokens wait for a prefill of anything from a word to a long context.
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
DURATION_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
LOAD_BUCKETS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
QUEUE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
LENGTH_BUCKETS = tuple(4**power for power in range(1, 11))  # tokens, up to a million

Stats = Callable[[], Iterable[tuple[str, EngineStats | None]]]


class NeuronMetrics:
    """One per neuron, on its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, ["model"], buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model", *labels], registry=registry)

        self._first = histogram(
            "neuron_time_to_first_token_seconds",
            "From arrival to the first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._inter = histogram(
            "neuron_inter_token_seconds",
            "Mean time between tokens of a completion.",
            INTER_TOKEN_BUCKETS,
        )
        self._duration = histogram(
            "neuron_request_duration_seconds", "From arrival to the end.", DURATION_BUCKETS
        )
        self._queue = histogram(
            "neuron_request_queue_seconds", "From arrival to the first step.", QUEUE_BUCKETS
        )
        self._prefill = histogram(
            "neuron_request_prefill_seconds",
            "From the first step to the first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._decode = histogram(
            "neuron_request_decode_seconds",
            "From the first token to the last.",
            DURATION_BUCKETS,
        )
        self._prompt_lengths = histogram(
            "neuron_request_prompt_tokens", "Tokens of a request's prompt.", LENGTH_BUCKETS
        )
        self._lengths = histogram(
            "neuron_request_generation_tokens", "Tokens of a completion.", LENGTH_BUCKETS
        )
        self._prompt = counter("neuron_prompt_tokens_total", "Tokens of prompts.")
        self._cached = counter("neuron_cached_prompt_tokens_total", "Of those, found in the cache.")
        self._generated = counter("neuron_generation_tokens_total", "Tokens generated.")
        self._finished = counter(
            "neuron_requests_total", "Completions and embeddings that ended.", "end"
        )
        self._aborted = counter("neuron_requests_aborted_total", "Requests whose client left.")
        self._failed = counter("neuron_requests_failed_total", "Requests that failed.", "reason")
        self._stages = Histogram(
            "neuron_load_stage_seconds",
            "Time of a stage of a load.",
            ["model", "stage"],
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        # Without the model: what fails to load may be any name that somebody made up.
        self._load_failures = Counter(
            "neuron_load_failures_total", "Loads that failed.", ["reason"], registry=registry
        )

    def ended(self, model: str, job: Job | EmbeddingJob) -> None:
        """*job* has ended, whole or not: count what it did."""
        self._prompt.labels(model).inc(sum(job.prompt_tokens))
        for length in job.prompt_tokens:
            self._prompt_lengths.labels(model).observe(length)
        if isinstance(job, EmbeddingJob):
            for embedding in job.embeddings:
                self._embedding(model, embedding, job.end)
            return
        for completion in job.completions:
            self._completion(model, completion)

    def aborted(self, model: str) -> None:
        self._aborted.labels(model).inc()

    def failed(self, model: str, reason: str) -> None:
        self._failed.labels(model, reason).inc()

    def landed(self, model: str, error: CortexError | None, seconds: Mapping[str, float]) -> None:
        """A load has ended; its stages took *seconds*."""
        if error is not None:
            self._load_failures.labels(type(error).__name__).inc()
            return
        for stage, spent in seconds.items():
            self._stages.labels(model, stage).observe(spent)

    def _completion(self, model: str, completion: Completion) -> None:
        self._generated.labels(model).inc(completion.tokens)
        self._cached.labels(model).inc(completion.cached_tokens)
        if completion.tokens:
            added = completion.added_at
            self._first.labels(model).observe(max(0.0, completion.first_at - added))
            prefill = max(0.0, completion.first_at - completion.scheduled_at)
            self._prefill.labels(model).observe(prefill)
            self._lengths.labels(model).observe(completion.tokens)
            self._queue.labels(model).observe(max(0.0, completion.scheduled_at - added))
            self._duration.labels(model).observe(max(0.0, completion.last_at - added))
        if completion.tokens > 1:
            spent = max(0.0, completion.last_at - completion.first_at)
            self._decode.labels(model).observe(spent)
            self._inter.labels(model).observe(spent / (completion.tokens - 1))
        if completion.finish is not None:
            self._finished.labels(model, completion.finish).inc()

    def _embedding(self, model: str, embedding: Embedding, end: str) -> None:
        self._cached.labels(model).inc(embedding.cached_tokens)
        if embedding.written is not None:
            added = embedding.added_at
            self._queue.labels(model).observe(max(0.0, embedding.scheduled_at - added))
            self._duration.labels(model).observe(max(0.0, embedding.ended_at - added))
            self._finished.labels(model, end).inc()


class PullMetrics:
    """Of pulls; *under_way* says how many there are now. Without the model, as of failed loads."""

    def __init__(self, registry: CollectorRegistry, under_way: Callable[[], int]) -> None:
        self._ended = Counter(
            "neuron_pulls_total", "Pulls of a model's files.", ["result"], registry=registry
        )
        self._bytes = Counter(
            "neuron_pulled_bytes_total", "Bytes of files that pulls brought.", registry=registry
        )
        gauge = Gauge("neuron_pulls_under_way", "Pulls that run or wait.", registry=registry)
        gauge.set_function(under_way)

    def ended(self, pull: wire.Pull) -> None:
        self._ended.labels(pull.status).inc()
        self._bytes.inc(pull.fetched or 0)


class SnapshotCollector(Collector):
    """Gauges and counters out of published snapshots."""

    def __init__(
        self,
        *,
        models: Callable[[], Iterable[Model]],
        stats: Stats,
        devices: Callable[[], Iterable[DeviceHealth]],
        rejected: Callable[[str], int],
        revivals: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        self._models = models
        self._stats = stats
        self._devices = devices
        self._rejected = rejected
        self._revivals = revivals

    def collect(self) -> Iterable[Metric]:
        yield from self._engines()
        yield self._status()
        yield from self._device_gauges()
        revivals = CounterMetricFamily(
            "neuron_engine_restarts",
            "Loads of a model because its engine had failed by itself.",
            labels=["model"],
        )
        for model, times in self._revivals():
            revivals.add_metric([model], times)
        yield revivals

    def _engines(self) -> Iterable[Metric]:
        gauges = {
            "running": GaugeMetricFamily(
                "neuron_requests_running", "Completions in the batch.", labels=["model"]
            ),
            "waiting": GaugeMetricFamily(
                "neuron_requests_waiting", "Completions that wait.", labels=["model"]
            ),
            "kv": GaugeMetricFamily(
                "neuron_kv_cache_usage_ratio", "Share of KV blocks in use.", labels=["model"]
            ),
        }
        counters = {
            name: CounterMetricFamily(f"neuron_{name}", text, labels=["model"])
            for name, text in (
                ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
                ("prefix_cache_hits", "Prompt tokens found there."),
                ("preemptions", "Requests that gave their blocks up for others."),
                ("engine_steps", "Steps of the engine."),
                ("requests_rejected", "Requests refused because the queue was full."),
                ("requests_expired", "Requests that waited in the queue for too long."),
                ("out_of_memory_steps", "Steps that memory was too short for."),
            )
        }
        steps = HistogramMetricFamily(
            "neuron_step_seconds", "Time of a step of the engine.", labels=["model"]
        )
        for model, stats in self._stats():
            counters["requests_rejected"].add_metric([model], self._rejected(model))
            if stats is None:
                continue
            gauges["running"].add_metric([model], stats.running)
            gauges["waiting"].add_metric([model], stats.waiting)
            gauges["kv"].add_metric([model], stats.kv_blocks_used / max(1, stats.kv_blocks_total))
            counters["prefix_cache_queries"].add_metric([model], stats.prefix_query_tokens)
            counters["prefix_cache_hits"].add_metric([model], stats.prefix_hit_tokens)
            counters["preemptions"].add_metric([model], stats.preemptions)
            counters["engine_steps"].add_metric([model], stats.steps)
            counters["requests_expired"].add_metric([model], stats.expired)
            counters["out_of_memory_steps"].add_metric([model], stats.out_of_memory)
            if stats.step_counts:
                steps.add_metric([model], _cumulative(stats.step_counts), stats.step_seconds)
        yield from gauges.values()
        yield from counters.values()
        yield steps

    def _status(self) -> Metric:
        status = GaugeMetricFamily(
            "neuron_model_status", "1 for the status a model has.", labels=["model", "status"]
        )
        for model in self._models():
            status.add_metric([model.id, model.status], 1)
        return status

    def _device_gauges(self) -> Iterable[Metric]:
        families = {
            "vram_used_mb": ("neuron_device_memory_used_mb", "Memory in use, MiB."),
            "vram_free_mb": ("neuron_device_memory_free_mb", "Memory free, MiB."),
            "utilization_pct": ("neuron_device_utilization_pct", "Utilisation, percent."),
            "temp_c": ("neuron_device_temperature_celsius", "Temperature."),
        }
        up = GaugeMetricFamily("neuron_device_up", "Whether a device works.", labels=["device"])
        devices = tuple(self._devices())
        for device in devices:
            up.add_metric([str(device.index)], 1 if device.ok else 0)
        yield up
        for field, (name, text) in families.items():
            family = GaugeMetricFamily(name, text, labels=["device"])
            for device in devices:
                value = getattr(device, field)
                if value is not None:  # unknown is not zero
                    family.add_metric([str(device.index)], value)
            yield family


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Counts of each bucket as Prometheus wants them: of all up to its bound."""
    bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(counts), strict=True))
