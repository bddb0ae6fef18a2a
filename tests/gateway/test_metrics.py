from __future__ import annotations

import contextlib

import pytest
from prometheus_client import CollectorRegistry

from cortex.config.gateway import NeuronNode
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import GatewayMetrics
from cortex.service.metrics import add_build_info, render
from cortex.wire import neuron as wire


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet([NeuronNode("a", "http://a:1"), NeuronNode("b", "http://b:1")], clock=lambda: 0.0)
    load = wire.ModelLoad(
        "m",
        in_flight=2,
        queue_depth=1,
        max_in_flight=8,
        max_queue_depth=64,
        tok_s_prefill=900.0,
        tok_s_decode=40.0,
    )
    device = wire.DeviceHealth(0, vram_used_mb=4, vram_free_mb=20, utilization_pct=50, temp_c=60)
    health = wire.Health(1.0, devices=(device, wire.DeviceHealth(1)), models=(load,))
    fleet.polled("a", [wire.Model("m", wire.LOADED)], health, asked_at=0)
    fleet.missed("b", "refused")
    return fleet


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def record_everything(metrics: GatewayMetrics, fleet: Fleet) -> None:
    with metrics.in_flight("m", "a"):
        metrics.stage("m", "a", "route", 0.001)
    metrics.retry("m", "a")
    metrics.first_token("m", "a", 0.2)
    metrics.inter_tokens("m", "a").observe(0.02)
    metrics.inter_tokens("m", "a").observe(0.04)
    metrics.tokens("m", "a", prompt=7, completion=3, cached=2)
    metrics.spend("laptop", "m", "prompt", 7)
    metrics.tokens_per_second("m", "a", 40)
    metrics.disconnect("m", "a")
    metrics.error("m", "a", "upstream_error")
    metrics.finished("m", "a", "openai", 200, 1.5)
    metrics.cold_start("m", "a")
    metrics.load_seconds("m", "a", 12)
    metrics.load_failed("m", "a")
    metrics.eviction("m", "a", "idle")
    metrics.readiness_probe("ok")
    metrics.pull_ended("a", "pulled")
    metrics.observe_fleet(fleet.nodes)
    metrics.observe_queue(lambda: {"m": 3})
    metrics.observe_certificate(lambda: 2e9)


def test_every_described_metric_is_emitted(registry, fleet):
    record_everything(GatewayMetrics(registry), fleet)
    described = {family.name for family in registry.collect()}
    emitted = {family.name for family in registry.collect() if family.samples}
    assert described == emitted
    assert len(described) >= 28


REPLICA = {"model", "node"}
# Every family of `design.md` 8, as its samples are named, and their labels.
FAMILIES = {
    "cortex_requests_total": REPLICA | {"code", "dialect"},
    "cortex_request_duration_seconds": REPLICA,
    "cortex_request_errors_total": REPLICA | {"reason"},
    "cortex_cold_starts_total": REPLICA,
    "cortex_evictions_total": REPLICA | {"reason"},
    "cortex_pulls_total": {"node", "result"},
    "cortex_time_to_first_token_seconds": REPLICA,
    "cortex_tokens_per_second": REPLICA,
    "cortex_inter_token_seconds": REPLICA,
    "cortex_prompt_tokens_total": REPLICA,
    "cortex_completion_tokens_total": REPLICA,
    "cortex_cached_prompt_tokens_total": REPLICA,
    "cortex_stage_seconds": REPLICA | {"stage"},
    "cortex_in_flight": REPLICA,
    "cortex_neuron_up": {"node"},
    "cortex_model_status": REPLICA | {"status"},
    "cortex_model_load_seconds": REPLICA,
    "cortex_client_disconnects_total": REPLICA,
    "cortex_upstream_retries_total": REPLICA,
    "cortex_spend_tokens_total": {"key", "model", "kind"},
    "cortex_device_vram_used_mb": {"node", "device"},
    "cortex_device_vram_free_mb": {"node", "device"},
    "cortex_device_utilization_pct": {"node", "device"},
    "cortex_device_temp_c": {"node", "device"},
    "cortex_queue_waiting": {"model"},
    "cortex_tls_certificate_expiry_timestamp_seconds": set(),
    "cortex_build_info": {"version", "python", "commit", "flavour"},
}


@pytest.mark.parametrize(("name", "labels"), FAMILIES.items(), ids=FAMILIES)
def test_every_family_of_the_design_has_its_labels(registry, fleet, name, labels):
    record_everything(GatewayMetrics(registry), fleet)
    add_build_info(registry, "cortex_build_info", "0")
    found = {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if sample.name in (name, f"{name}_count")
    }
    assert list(found.values()) == [labels]


def test_the_dashboards_names_are_there(registry, fleet):
    record_everything(GatewayMetrics(registry), fleet)
    samples = {sample.name for family in registry.collect() for sample in family.samples}
    assert samples >= {
        "cortex_requests_total",
        "cortex_request_errors_total",
        "cortex_cold_starts_total",
        "cortex_evictions_total",
        "cortex_prompt_tokens_total",
        "cortex_completion_tokens_total",
        "cortex_cached_prompt_tokens_total",
        "cortex_client_disconnects_total",
        "cortex_upstream_retries_total",
        "cortex_in_flight",
        "cortex_neuron_up",
        "cortex_model_status",
        "cortex_device_vram_used_mb",
    }


@pytest.mark.parametrize(
    "name",
    [
        "cortex_request_duration_seconds",
        "cortex_time_to_first_token_seconds",
        "cortex_inter_token_seconds",
        "cortex_tokens_per_second",
        "cortex_stage_seconds",
        "cortex_model_load_seconds",
    ],
)
def test_distributions_are_histograms_with_buckets(registry, fleet, name):
    record_everything(GatewayMetrics(registry), fleet)
    text = render(registry).decode()
    assert f"# TYPE {name} histogram" in text
    assert text.count(f"{name}_bucket{{") > 10


def test_tokens_are_counted_by_kind(registry):
    metrics = GatewayMetrics(registry)
    metrics.tokens("m", "a", prompt=7, completion=3, cached=2)
    metrics.tokens("m", "a", prompt=1, completion=1, cached=0)
    labels = {"model": "m", "node": "a"}
    assert registry.get_sample_value("cortex_prompt_tokens_total", labels) == 8
    assert registry.get_sample_value("cortex_completion_tokens_total", labels) == 4
    assert registry.get_sample_value("cortex_cached_prompt_tokens_total", labels) == 2


def test_what_a_key_spends_is_counted_by_kind(registry):
    metrics = GatewayMetrics(registry)
    metrics.spend("laptop", "m", "prompt", 7)
    metrics.spend("laptop", "m", "prompt", 2)
    metrics.spend("laptop", "m", "completion", 1)
    labels = {"key": "laptop", "model": "m"}
    spent = [
        registry.get_sample_value("cortex_spend_tokens_total", {**labels, "kind": kind})
        for kind in ("prompt", "cached", "completion")
    ]
    assert spent == [9, None, 1]


def test_requests_in_flight_are_released_whatever_ends_them(registry):
    metrics = GatewayMetrics(registry)
    labels = {"model": "m", "node": "a"}
    seen = []
    with contextlib.suppress(RuntimeError), metrics.in_flight("m", "a"):
        seen.append(registry.get_sample_value("cortex_in_flight", labels))
        raise RuntimeError
    assert seen == [1]
    assert registry.get_sample_value("cortex_in_flight", labels) == 0


def test_the_queues_and_the_certificate_are_read_at_each_scrape(registry):
    metrics, waiting, expiries = GatewayMetrics(registry), {"m": 1}, [6.0]
    metrics.observe_queue(lambda: waiting)
    metrics.observe_certificate(lambda: expiries[-1])
    value, expiry = registry.get_sample_value, "cortex_tls_certificate_expiry_timestamp_seconds"
    assert value("cortex_queue_waiting", {"model": "m"}) == 1
    waiting["m"] = 4
    assert value("cortex_queue_waiting", {"model": "m"}) == 4
    assert value(expiry) == 6
    expiries.append(7.0)
    assert value(expiry) == 7


def test_the_fleets_gauges_follow_the_snapshots(registry, fleet):
    GatewayMetrics(registry).observe_fleet(fleet.nodes)
    value = registry.get_sample_value
    assert value("cortex_neuron_up", {"node": "a"}) == 1
    assert value("cortex_neuron_up", {"node": "b"}) == 0
    assert value("cortex_model_status", {"model": "m", "node": "a", "status": "loaded"}) == 1
    assert value("cortex_device_vram_free_mb", {"node": "a", "device": "0"}) == 20
    assert value("cortex_device_vram_free_mb", {"node": "a", "device": "1"}) is None  # unknown
    for _ in range(3):
        fleet.missed("a", "refused")
    assert value("cortex_neuron_up", {"node": "a"}) == 0
    assert value("cortex_model_status", {"model": "m", "node": "a", "status": "loaded"}) is None
    assert value("cortex_model_status", {"model": "m", "node": "a", "status": "unreachable"}) == 1
    assert value("cortex_device_vram_free_mb", {"node": "a", "device": "0"}) is None
