from __future__ import annotations

import pytest

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import NeuronNode
from cortex.gateway import models_view
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.wire import json
from cortex.wire import neuron as wire

ENTRY = CatalogueEntry(
    "org/m",
    vram_mb=8000,
    capabilities=("text",),
    limit={"context": 32768, "output": 4096},
    cost={"input": 0.0, "output": 1.5},
)
HUGE = CatalogueEntry("org/huge", vram_mb=90_000)
DISCOVERY = wire.Discovery("h", "linux", "6", (wire.Device(0, "GPU", vram_total_mb=24_000),))
HEALTH = wire.Health(
    5.0,
    devices=(wire.DeviceHealth(0, vram_used_mb=4000, vram_free_mb=20_000, temp_c=60),),
    models=(wire.ModelLoad("org/m", in_flight=2, queue_depth=1),),
)


@pytest.fixture
def fleet() -> Fleet:
    nodes = [NeuronNode("a", "http://a:1", token="s3cret"), NeuronNode("b", "http://b:1")]
    fleet = Fleet(nodes, clock=lambda: 0.0)
    for node in nodes:
        fleet.polled(node.name, [], HEALTH, asked_at=1)
        fleet.described(node.name, DISCOVERY, "1.0")
    return fleet


@pytest.fixture
def names(fleet) -> ModelNames:
    return ModelNames(Catalogue((ENTRY, HUGE), {"claude-sonnet": "org/m"}), fleet)


def poll(fleet: Fleet, node: str, *models: wire.Model, **fields) -> None:
    health = wire.Health(9.0, **{"devices": HEALTH.devices, "models": HEALTH.models, **fields})
    fleet.polled(node, models, health, asked_at=1)


def lose(fleet: Fleet, node: str) -> None:
    for _ in range(3):
        fleet.missed(node, "refused")


def loaded(**fields) -> wire.Model:
    return wire.Model("org/m", wire.LOADED, **fields)


def test_every_model_and_alias_has_an_entry_and_is_json(names, fleet):
    poll(fleet, "a", wire.Model("cortex/demo", wire.LOADED))
    entries = models_view.entries(names, fleet)
    ids = [entry["id"] for entry in entries]
    assert ids == ["org/m", "org/huge", "cortex/demo", "claude-sonnet"]
    assert json.loads(json.dumps(entries)) == entries


def test_a_load_is_told_under_every_name_of_the_model(names, fleet):
    progress = wire.Progress("weights", 1, 4, 12.5)
    poll(fleet, "b", wire.Model("org/m", wire.LOADING, progress=progress))
    for name in ("org/m", "claude-sonnet"):
        entry = models_view.model(names, fleet, name)
        assert entry["status"] == "loading"
        assert entry["loading"] == {"node": "b", "stage": "weights", "progress": 0.25, "eta": 12.5}
    poll(fleet, "b", loaded())
    assert "loading" not in models_view.model(names, fleet, "org/m")


def test_an_empty_fleet_has_no_models():
    fleet = Fleet([])
    assert models_view.entries(ModelNames(Catalogue(), fleet), fleet) == []


def test_every_entry_satisfies_the_clients_parsers(names, fleet):
    for entry in models_view.entries(names, fleet):
        assert (entry["object"], entry["type"]) == ("model", "model")
        assert type(entry["created"]) is int
        assert entry["created_at"].endswith("Z")
        assert entry["owned_by"]
        assert entry["display_name"] == entry["id"]


def test_an_unloaded_model_shows_what_the_catalogue_says(names, fleet):
    entry = models_view.model(names, fleet, "org/m")
    assert (entry["loaded"], entry["status"], entry["locations"]) == (False, "unloaded", [])
    assert entry["feasible_on"] == ["a", "b"]
    assert entry["limit"] == {"context": 32768, "output": 4096}
    assert entry["capabilities"] == ["text"]
    assert entry["cost"] == {"input": 0.0, "output": 1.5}  # free is not unpriced
    assert models_view.model(names, fleet, "org/huge")["feasible_on"] == []


def test_what_is_unknown_is_left_out(names, fleet):
    entry = models_view.model(names, fleet, "org/huge")
    assert not entry.keys() & {"limit", "cost", "capabilities", "tool_call", "max_model_len"}


def test_limits_are_the_tightest_over_the_nodes_and_beat_the_catalogue(names, fleet):
    poll(fleet, "a", loaded(limit=wire.Limit(65536, output=8192)))
    poll(fleet, "b", loaded(limit=wire.Limit(16384, 12000)))
    entry = models_view.model(names, fleet, "org/m")
    assert entry["limit"] == {"context": 16384, "input": 12000, "output": 8192}
    assert entry["max_model_len"] == 16384
    assert entry["max_input_tokens"] == 12000
    assert entry["max_output_tokens"] == entry["max_tokens"] == 8192


def test_capabilities_are_the_union_of_what_replicas_report(names, fleet):
    poll(fleet, "a", loaded(capabilities=("text",), tool_call=False, reasoning=None))
    poll(fleet, "b", loaded(capabilities=("text", "vision"), tool_call=True))
    entry = models_view.model(names, fleet, "org/m")
    assert entry["capabilities"] == ["text", "vision"]
    assert entry["tool_call"] is True
    assert "reasoning" not in entry


def test_locations_say_where_and_how_far(names, fleet):
    progress = wire.Progress("weights", 5, 10, 3.0)
    poll(fleet, "a", loaded(vram_used_mb=7000, loaded_at=1_700_000_000.5))
    poll(fleet, "b", wire.Model("org/m", wire.LOADING, progress=progress))
    entry = models_view.model(names, fleet, "org/m")
    assert (entry["loaded"], entry["status"]) == (True, "loaded")
    assert entry["created"] == 1_700_000_000
    assert entry["created_at"] == "2023-11-14T22:13:20Z"
    told = {"stage": "weights", "bytes_done": 5, "bytes_total": 10, "eta_seconds": 3.0}
    assert entry["locations"] == [
        {"node": "a", "status": "loaded", "vram_estimate_mb": 7000},
        {"node": "b", "status": "loading", "vram_estimate_mb": 8000, "progress": told},
    ]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("recovering", "loading"), "recovering"),
        (("loading", "failed"), "loading"),
        (("failed", None), "failed"),
        (("loaded", "recovering"), "loaded"),
        ((None, None), "unloaded"),
    ],
)
def test_a_models_status_is_the_best_of_its_replicas(names, fleet, statuses, expected):
    for node, status in zip("ab", statuses, strict=True):
        poll(fleet, node, *([] if status is None else [wire.Model("org/m", status)]))
    assert models_view.model(names, fleet, "org/m")["status"] == expected


def test_a_model_whose_node_is_away_is_listed_but_not_as_loaded(names, fleet):
    poll(fleet, "a", wire.Model("cortex/demo", wire.LOADED))
    lose(fleet, "a")
    entry = models_view.model(names, fleet, "cortex/demo")
    assert (entry["loaded"], entry["status"]) == (False, "unloaded")
    assert entry["locations"] == [{"node": "a", "status": "unreachable"}]


def test_an_alias_is_its_target_under_another_name(names, fleet):
    alias, target = (models_view.model(names, fleet, name) for name in ("claude-sonnet", "org/m"))
    assert alias.pop("alias_of") == "org/m"
    assert alias.pop("id") == alias.pop("display_name") == "claude-sonnet"
    assert alias == {k: v for k, v in target.items() if k not in ("id", "display_name")}


def test_an_unknown_name_has_no_entry(names, fleet):
    assert models_view.model(names, fleet, "../../etc/passwd") is None


def test_health_is_ok_only_when_everything_is(fleet):
    assert models_view.health(fleet) == {
        "status": "ok",
        "nodes": {"healthy": 2, "total": 2, "impaired": 0},
        "unservable": [],
    }
    poll(fleet, "a", status="recovering")
    assert models_view.health(fleet)["status"] == "degraded"
    assert models_view.health(fleet)["nodes"]["impaired"] == 1
    poll(fleet, "a")
    lose(fleet, "b")
    assert models_view.health(fleet)["status"] == "degraded"
    assert models_view.health(fleet)["nodes"] == {"healthy": 1, "total": 2, "impaired": 0}


def test_health_names_what_is_loaded_but_serves_nothing(fleet):
    poll(fleet, "a", loaded(servable=wire.Servable(False, "no_kv", "KV cache too small")))
    body = models_view.health(fleet)
    assert body["status"] == "degraded"
    told = {"node": "a", "model": "org/m", "reason": "no_kv", "detail": "KV cache too small"}
    assert body["unservable"] == [told]


def test_a_device_out_of_order_impairs_its_node(fleet):
    broken = (wire.DeviceHealth(0, ok=False, reason="lost"),)
    poll(fleet, "a", devices=broken)
    assert models_view.health(fleet)["nodes"]["impaired"] == 1
