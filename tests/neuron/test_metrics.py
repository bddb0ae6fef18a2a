"""What a scrape shows: every family, with the figures of what ran."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cortex.engine.engine import EngineStats
from cortex.engine.request import Request, SamplingParams
from cortex.engine.step_times import BOUNDS
from cortex.errors import LoadFailed
from cortex.neuron.device_metrics import DeviceCollector
from cortex.neuron.device_slot import DeviceSlot
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.generation import Completion
from cortex.neuron.job import Job
from cortex.neuron.ledger import Ledger
from cortex.neuron.metrics import NeuronMetrics, SnapshotCollector
from cortex.service import metrics
from cortex.wire.neuron import Device, DeviceHealth, Model

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
    out_of_memory=5,
    expired=6,
    step_counts=(0, 2, *(0,) * (len(BOUNDS) - 2), 1),
    step_seconds=61.5,
)
FAMILIES = {
    "neuron_time_to_first_token_seconds": "histogram",
    "neuron_inter_token_seconds": "histogram",
    "neuron_request_duration_seconds": "histogram",
    "neuron_request_queue_seconds": "histogram",
    "neuron_request_prefill_seconds": "histogram",
    "neuron_request_decode_seconds": "histogram",
    "neuron_request_prompt_tokens": "histogram",
    "neuron_request_generation_tokens": "histogram",
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
    "neuron_memory_estimated_bytes": "gauge",
    "neuron_memory_estimate_error_ratio": "gauge",
    "neuron_device_faults": "counter",
    "neuron_recoveries": "counter",
    "neuron_engine_restarts": "counter",
    "neuron_requests_expired": "counter",
    "neuron_out_of_memory_steps": "counter",
    "neuron_step_seconds": "histogram",
    "neuron_load_stage_seconds": "histogram",
    "neuron_load_failures": "counter",
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
    told.landed("m", None, {"weights": 3.0, "cache": 0.2})
    told.landed("anything", LoadFailed("no such files"), {})
    slot = DeviceSlot(Device(0, "gpu"), DeviceThread("gpu-dev-0"), Ledger(0, 9000))
    slot.thread.declare_lost(RuntimeError("gone"))
    reservation = slot.ledger.reserve("m", {"weights": 1200, "workspace": 7})
    reservation.settle({"weights": 1234, "workspace": 7})
    registry.register(DeviceCollector([slot], lambda: [("m", -0.03)], recoveries=2))
    registry.register(
        SnapshotCollector(
            models=lambda: [Model("m", "loaded"), Model("n", "failed")],
            stats=lambda: [("m", stats)],
            devices=lambda: [DeviceHealth(0, 100, 200, 30, 40), DeviceHealth(1, ok=False)],
            rejected=lambda model: 7,
            revivals=lambda: [("m", 8)],
        )
    )
    return registry


def test_every_family_is_there_with_its_type() -> None:
    families = text_string_to_metric_families(metrics.render(filled()).decode())
    # prometheus_client adds when each counter began.
    told = {family.name: family.type for family in families if "_created" not in family.name}
    assert told == FAMILIES


def test_every_family_that_is_described_has_samples() -> None:
    assert [family.name for family in filled().collect() if not family.samples] == []


def test_labels_take_no_values_that_a_client_chooses() -> None:
    values: dict[str, set[str]] = {}
    for _, labels in scrape(filled()):
        for name, value in labels:
            values.setdefault(name, set()).add(value)
    assert values.pop("le")
    assert values == {
        "model": {"m", "n"},  # what is here; not the name that failed to load
        "device": {"0", "1"},
        "row": {"weights", "workspace"},
        "status": {"loaded", "failed"},
        "stage": {"weights", "cache"},
        "end": {"stop"},
        "reason": {"InternalError", "LoadFailed"},
    }


def test_memory_and_faults_are_told_by_device() -> None:
    seen = scrape(filled())
    labels = (("device", "0"), ("model", "m"), ("row", "weights"))
    assert seen["neuron_device_memory_bytes", labels] == 1234
    assert seen["neuron_memory_estimated_bytes", labels] == 1200
    assert seen["neuron_memory_estimate_error_ratio", (("model", "m"),)] == -0.03
    assert seen["neuron_device_faults_total", (("device", "0"),)] == 1
    assert seen["neuron_recoveries_total", ()] == 2


def test_loads_are_told_by_stage_and_failures_by_reason() -> None:
    seen = scrape(filled())
    assert seen["neuron_load_stage_seconds_sum", (("model", "m"), ("stage", "weights"))] == 3.0
    assert seen["neuron_load_failures_total", (("reason", "LoadFailed"),)] == 1


def test_steps_are_a_histogram() -> None:
    seen = scrape(filled())
    model = ("model", "m")
    assert seen["neuron_step_seconds_count", (model,)] == 3
    assert seen["neuron_step_seconds_sum", (model,)] == 61.5
    buckets = [seen["neuron_step_seconds_bucket", (("le", str(b)), model)] for b in BOUNDS]
    assert buckets == [0, *[2] * (len(BOUNDS) - 1)]


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
    assert seen["neuron_request_prefill_seconds_sum", model] == 1.0
    assert seen["neuron_request_decode_seconds_sum", model] == 2.0
    assert seen["neuron_request_prompt_tokens_sum", model] == 10
    assert seen["neuron_request_generation_tokens_sum", model] == 6
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
    assert seen["neuron_engine_restarts_total", model] == 8
    assert seen["neuron_requests_expired_total", model] == 6
    assert seen["neuron_out_of_memory_steps_total", model] == 5


def test_what_is_not_known_is_left_out() -> None:
    seen = scrape(filled(stats=None))
    assert not [name for name, _ in seen if name == "neuron_requests_running"]
    assert seen["neuron_requests_rejected_total", (("model", "m"),)] == 7
    assert ("neuron_device_temperature_celsius", (("device", "1"),)) not in seen


def test_a_completion_without_a_token_measures_no_time() -> None:
    registry = CollectorRegistry()
    NeuronMetrics(registry).ended("m", Job("j", [completion(0, tokens=0, finish=None)], [10]))
    seen = scrape(registry)
    counted = {name for name, _ in seen if name.endswith("_count")}
    assert counted == {"neuron_request_prompt_tokens_count"}
    assert seen["neuron_prompt_tokens_total", (("model", "m"),)] == 10
