"""What a scrape shows: every family, with the figures of what ran."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cortex.engine.engine import EngineStats
from cortex.engine.request import Request, SamplingParams
from cortex.neuron.generation import Completion
from cortex.neuron.job import Job
from cortex.neuron.metrics import NeuronMetrics, SnapshotCollector
from cortex.service import metrics
from cortex.wire.neuron import DeviceHealth, Model

STATS = EngineStats(
    running=3,
    waiting=2,
    kv_blocks_total=8,
    kv_blocks_used=6,
    prefix_hit_tokens=40,
    prefix_query_tokens=90,
    prompt_tokens=100,
    generated_tokens=50,
    preemptions=4,
    steps=70,
)
FAMILIES = {
    "neuron_time_to_first_token_seconds": "histogram",
    "neuron_inter_token_seconds": "histogram",
    "neuron_request_duration_seconds": "histogram",
    "neuron_request_queue_seconds": "histogram",
    "neuron_prompt_tokens": "counter",
    "neuron_cached_prompt_tokens": "counter",
    "neuron_generation_tokens": "counter",
    "neuron_requests": "counter",
    "neuron_requests_aborted": "counter",
    "neuron_requests_failed": "counter",
    "neuron_requests_running": "gauge",
    "neuron_requests_waiting": "gauge",
    "neuron_kv_cache_usage_ratio": "gauge",
    "neuron_prefix_cache_queries": "counter",
    "neuron_prefix_cache_hits": "counter",
    "neuron_preemptions": "counter",
    "neuron_engine_steps": "counter",
    "neuron_requests_rejected": "counter",
    "neuron_model_status": "gauge",
    "neuron_device_up": "gauge",
    "neuron_device_memory_used_mb": "gauge",
    "neuron_device_memory_free_mb": "gauge",
    "neuron_device_utilization_pct": "gauge",
    "neuron_device_temperature_celsius": "gauge",
    "neuron_device_memory_bytes": "gauge",
}


def completion(index: int, *, tokens: int, finish: str | None) -> Completion:
    parser: Any = None
    one = Completion(index, Request(f"r{index}", (1,) * 10, SamplingParams(), 9), parser)
    one.added_at, one.scheduled_at, one.first_at, one.last_at = 10.0, 10.5, 11.0, 13.0
    one.tokens, one.cached_tokens, one.finish = tokens, 4, finish
    return one


def scrape(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def filled(stats: EngineStats | None = STATS) -> CollectorRegistry:
    registry = CollectorRegistry()
    told = NeuronMetrics(registry)
    job = Job(
        "j", [completion(0, tokens=5, finish="stop"), completion(1, tokens=1, finish=None)], [10]
    )
    told.ended("m", job)
    told.aborted("m")
    told.failed("m", "InternalError")
    registry.register(
        SnapshotCollector(
            models=lambda: [Model("m", "loaded"), Model("n", "failed")],
            stats=lambda: [("m", stats)],
            devices=lambda: [DeviceHealth(0, 100, 200, 30, 40), DeviceHealth(1, ok=False)],
            ledger=lambda: [(0, "m", "weights", 1234)],
            rejected=lambda model: 7,
        )
    )
    return registry


def test_every_family_is_there_with_its_type() -> None:
    families = text_string_to_metric_families(metrics.render(filled()).decode())
    types = {family.name: family.type for family in families if family.samples}
    assert {name: types.get(name) for name in FAMILIES} == FAMILIES


def test_what_ran_is_counted() -> None:
    seen = scrape(filled())
    model = (("model", "m"),)
    assert seen["neuron_prompt_tokens_total", model] == 10
    assert seen["neuron_cached_prompt_tokens_total", model] == 8
    assert seen["neuron_generation_tokens_total", model] == 6
    assert seen["neuron_requests_total", (("end", "stop"), *model)] == 1
    assert seen["neuron_requests_aborted_total", model] == 1
    assert seen["neuron_requests_failed_total", (*model, ("reason", "InternalError"))] == 1
    assert seen["neuron_time_to_first_token_seconds_sum", model] == 2.0
    assert seen["neuron_request_queue_seconds_sum", model] == 1.0
    assert seen["neuron_request_duration_seconds_sum", model] == 6.0
    assert seen["neuron_inter_token_seconds_sum", model] == 0.5  # the first's 2 s over 4 gaps
    assert seen["neuron_inter_token_seconds_count", model] == 1


def test_snapshots_are_shown_as_they_are() -> None:
    seen = scrape(filled())
    model = (("model", "m"),)
    assert seen["neuron_requests_running", model] == 3
    assert seen["neuron_requests_waiting", model] == 2
    assert seen["neuron_kv_cache_usage_ratio", model] == 0.75
    assert seen["neuron_prefix_cache_hits_total", model] == 40
    assert seen["neuron_prefix_cache_queries_total", model] == 90
    assert seen["neuron_preemptions_total", model] == 4
    assert seen["neuron_requests_rejected_total", model] == 7
    assert seen["neuron_model_status", (("model", "n"), ("status", "failed"))] == 1
    assert seen["neuron_device_up", (("device", "0"),)] == 1
    assert seen["neuron_device_up", (("device", "1"),)] == 0
    labels = (("device", "0"), ("model", "m"), ("row", "weights"))
    assert seen["neuron_device_memory_bytes", labels] == 1234


def test_what_is_not_known_is_left_out() -> None:
    seen = scrape(filled(stats=None))
    assert not [name for name, _ in seen if name == "neuron_requests_running"]
    assert seen["neuron_requests_rejected_total", (("model", "m"),)] == 7
    assert ("neuron_device_temperature_celsius", (("device", "1"),)) not in seen


def test_a_completion_without_a_token_measures_no_time() -> None:
    registry = CollectorRegistry()
    NeuronMetrics(registry).ended("m", Job("j", [completion(0, tokens=0, finish=None)], [10]))
    seen = scrape(registry)
    assert not [name for name, _ in seen if name.endswith("_count")]
    assert seen["neuron_prompt_tokens_total", (("model", "m"),)] == 10
