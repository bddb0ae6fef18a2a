from __future__ import annotations

import pytest

from cortex.config.gateway import NeuronNode
from cortex.gateway.fleet import Fleet
from cortex.gateway.fleet_view import FleetView
from cortex.gateway.pins import Pins
from cortex.wire import json
from cortex.wire import neuron as wire

DISCOVERY = wire.Discovery("h", "linux", "6", (wire.Device(0, "GPU", vram_total_mb=24_000),))
HEALTH = wire.Health(
    5.0,
    devices=(wire.DeviceHealth(0, vram_used_mb=4000, vram_free_mb=20_000, temp_c=60),),
    models=(wire.ModelLoad("org/m", in_flight=2, queue_depth=1, tok_s_decode=31.5),),
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
def pins() -> Pins:
    return Pins()


@pytest.fixture
def view(fleet, pins) -> FleetView:
    left = {("a", "org/m"): 12.345}
    return FleetView(
        fleet,
        pins,
        pins.holds,
        lambda node, model: left.get((node, model)),
        lambda model: 2 if model == "cold" else 0,
        lambda: ["org/m", "cold"],
    )


def hold(fleet: Fleet, node: str, status: str, **fields) -> None:
    fleet.polled(node, [wire.Model("org/m", status, **fields)], HEALTH, asked_at=1)


def test_nodes_are_shown_with_their_devices_and_no_secrets(fleet, view):
    for _ in range(3):
        fleet.missed("b", "refused")
    body = view.body()
    assert "s3cret" not in str(body)
    assert json.loads(json.dumps(body)) == body
    first, second = body["nodes"]
    assert (first["name"], first["endpoint"], first["version"]) == ("a", "http://a:1", "1.0")
    assert (first["healthy"], first["error"]) == (True, None)
    assert first["devices"] == [
        {
            "index": 0,
            "name": "GPU",
            "kind": "cuda",
            "vram_total_mb": 24_000,
            "vram_used_mb": 4000,
            "vram_free_mb": 20_000,
            "temp_c": 60,
            "ok": True,
        }
    ]
    assert (second["healthy"], second["error"]) == (False, "refused")
    assert second["status"] == "unreachable"


def test_a_model_is_shown_with_its_load_its_pin_and_the_time_it_has_left(fleet, pins, view):
    limit = wire.Limit(4096)
    hold(fleet, "a", "loaded", devices=(0,), vram_used_mb=7000, quant="q4_k_m", limit=limit)
    hold(fleet, "b", "loaded")
    pins.pin("org/m", "b")
    first, second = (node["models"][0] for node in view.body()["nodes"])
    assert first == {
        "id": "org/m",
        "status": "loaded",
        "devices": [0],
        "vram_used_mb": 7000,
        "quant": "q4_k_m",
        "context": 4096,
        "in_flight": 3,
        "queue_depth": 1,
        "tok_s_decode": 31.5,
        "pinned": False,
        "expires_in": 12.3,
    }
    assert second["pinned"]
    assert "expires_in" not in second
    assert view.body()["waiting"] == {"cold": 2}
    assert view.body()["pins"] == [{"model": "org/m", "node": "b"}]


def test_a_load_is_shown_as_the_neuron_tells_it_and_as_a_part(fleet, view):
    hold(fleet, "a", "loading", progress=wire.Progress("weights", 1, 4, 2.25))
    model = view.body()["nodes"][0]["models"][0]
    told = {"stage": "weights", "bytes_done": 1, "bytes_total": 4, "eta_seconds": 2.25}
    assert model["progress"] == told
    assert model["loading"] == {"stage": "weights", "progress": 0.25, "eta": 2.2}


def test_what_is_on_a_node_that_is_away_is_unreachable(fleet, view):
    hold(fleet, "a", "loaded")
    for _ in range(3):
        fleet.missed("a", "refused")
    model = view.body()["nodes"][0]["models"][0]
    assert model["status"] == "unreachable"
    assert "tok_s_decode" not in model
