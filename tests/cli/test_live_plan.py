"""What a fleet that answers would do for each model: by placement, and without loading any."""

from __future__ import annotations

import json

import pytest

from cortex.cli import live_plan
from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import GatewayConfig, NeuronNode

MIB = 1 << 20


def neuron_on(server, *, free=800, models=(), busy=()):
    device = {"index": 0, "name": "GPU", "kind": "cuda", "vram_total_mb": 1000}
    health = {
        "uptime_secs": 1.0,
        "devices": [{"index": 0, "vram_free_mb": free}],
        "models": [{"id": name, "in_flight": 1} for name in busy],
    }
    server.on("GET", "/health", health)
    server.on("GET", "/discovery", {"hostname": "h", "os": "o", "kernel": "k", "devices": [device]})
    server.on("GET", "/version", {"version": "1"})
    listed = [
        {"id": name, "status": "loaded", "devices": [0], "vram_used_mb": mb} for name, mb in models
    ]
    server.on("GET", "/models", (200, listed))
    return NeuronNode("gpu1", server.url)


def plans(entries, *nodes):
    found = live_plan.ask(GatewayConfig(neurons=nodes), Catalogue(tuple(entries)))
    return {model["model"]: model for model in found["models"]}, live_plan.sentences(found)


def test_each_model_gets_its_place_or_its_reason(server):
    node = neuron_on(server, free=100, models=[("there", 300), ("idle", 500)])
    entries = [
        CatalogueEntry("there", vram_mb=300),
        CatalogueEntry("idle", vram_mb=500),
        CatalogueEntry("small", vram_mb=50),
        CatalogueEntry("large", vram_mb=600),
        CatalogueEntry("huge", vram_mb=5000),
    ]
    found, words = plans(entries, node)
    assert {name: model["plan"] for name, model in found.items()} == {
        "there": "loaded",
        "idle": "loaded",
        "small": "load",
        "large": "load",
        "huge": "nowhere",
    }
    assert found["small"]["devices"] == [0]
    assert found["large"]["evicts"] == ["idle"]
    assert "large would be loaded on gpu1, device 0 (600 MiB needed, 100 MiB free, after idle" in (
        "\n".join(words)
    )
    assert any(line.startswith("huge can be loaded nowhere: gpu1") for line in words)
    assert {path for method, path, _ in server.asked if method == "POST"} == set()


def test_a_busy_model_is_waited_for(server):
    node = neuron_on(server, free=100, models=[("busy", 800)], busy=["busy"])
    entries = [CatalogueEntry("busy", vram_mb=800), CatalogueEntry("m", vram_mb=500)]
    found, words = plans(entries, node)
    assert found["m"]["plan"] == "wait"
    assert "m would wait: gpu1: in use: busy." in words


def test_a_size_that_is_not_stated_is_estimated_by_a_neuron(server):
    estimate = {
        "model_id": "m",
        "rows": {"weights": 700 * MIB, "kv": 0},
        "total_bytes": 700 * MIB,
        "context": 10,
        "trained_context": 10,
        "kv_bytes_per_token": 0,
    }
    server.on("POST", "/models/estimate", estimate)
    found, _ = plans([CatalogueEntry("m", quant="q8_0")], neuron_on(server))
    assert (found["m"]["plan"], found["m"]["needed_mb"]) == ("load", 700)
    assert server.bodies("/models/estimate") == [{"model_id": "m", "quant": "q8_0"}]


@pytest.mark.parametrize("answer", [(503, {"error": {"message": "no hub"}}), (200, {"a": 1})])
def test_an_estimate_that_fails_is_told(server, answer):
    server.on("POST", "/models/estimate", answer)
    found, words = plans([CatalogueEntry("m")], neuron_on(server))
    assert found["m"]["estimate_error"].startswith("gpu1: ")
    assert any("its size unknown" in line for line in words)


def test_a_neuron_that_is_away_is_said_to_be(nobody):
    found, words = plans([CatalogueEntry("m", vram_mb=1)], NeuronNode("gpu1", nobody))
    assert found["m"]["plan"] == "unhealthy"
    assert words[0].startswith("gpu1 does not answer: ")


def test_the_command_shows_it(invoke, server, tmp_path):
    neuron_on(server)
    (tmp_path / "models.toml").write_text("[[models]]\nid = 'm'\nvram_mb = 500\n")
    path = tmp_path / "cortex.toml"
    path.write_text(f"[[neurons]]\nname = 'gpu1'\nendpoint = '{server.url}'\n")
    result = invoke("check", path, "--live")
    assert result.exit_code == 0, result.output
    assert "what the fleet would do now:" in result.stdout
    assert "m would be loaded on gpu1, device 0" in result.stdout
    (report,) = json.loads(invoke("check", path, "--live", "--json").stdout)["files"]
    assert report["live"]["models"][0]["plan"] == "load"
    (report,) = json.loads(invoke("check", path, "--json").stdout)["files"]
    assert "live" not in report
    result = invoke("check", tmp_path / "models.toml", "--live")
    assert (result.exit_code, "names the neurons" in result.stderr) == (2, True)
