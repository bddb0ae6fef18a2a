from __future__ import annotations

import pytest
import trio
from fakes.gateway import gateway
from fakes.neuron import FakeNeuron

from cortex import __version__
from cortex.config.catalogue import CatalogueEntry
from cortex.errors import Forbidden
from cortex.gateway.api.fleet import _local_only
from cortex.service.http import HttpRequest

ENTRY = CatalogueEntry("org/model.v1", vram_mb=1000)


@pytest.fixture
async def served():
    neuron = FakeNeuron("a", token="s3cret")
    neuron.hold("m")
    with trio.fail_after(20):
        entries = {"models": (ENTRY,), "aliases": {"gpt-4": ENTRY.id}}
        async with gateway(neuron, **entries) as running:
            yield running, neuron


async def test_models_are_what_the_catalogue_and_the_fleet_have(served):
    running, _ = served
    body = (await running.client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert {"org/model.v1", "m"} <= {entry["id"] for entry in body["data"]}


@pytest.mark.parametrize("path", ["org/model.v1", "org%2Fmodel.v1", "m", "gpt-4"])
async def test_a_model_is_found_by_a_name_with_slashes(served, path):
    running, _ = served
    answer = await running.client.get(f"/v1/models/{path}")
    assert (answer.status_code, answer.json()["object"]) == (200, "model")


@pytest.mark.parametrize("name", ["nope", "org", "org/model.v1/", "../../metrics", "m%00", "%2e"])
async def test_a_model_nobody_knows_is_404(served, name):
    running, _ = served
    answer = await running.client.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("model_not_found", "not_found")


async def test_health_is_200_and_true_whatever_the_fleet_does(served):
    running, neuron = served
    before = await running.client.get("/health")
    assert before.status_code == 200
    assert (await running.client.get("/readyz")).status_code == 200
    neuron.kill()
    await running.until(0, "cortex_neuron_up", within=5, node="a")
    after = await running.client.get("/health")
    assert after.status_code == 200
    assert after.json() != before.json()
    assert (await running.client.get("/readyz")).status_code == 503
    assert (await running.client.get("/livez")).status_code == 200


async def test_the_version_is_told(served):
    running, _ = served
    assert (await running.client.get("/version")).json() == {"version": __version__}


async def test_head_is_served_where_get_is(served):
    running, _ = served
    answer = await running.client.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_the_fleet_shows_its_nodes_and_none_of_their_tokens(served):
    running, _ = served
    answer = await running.client.get("/fleet")
    assert answer.status_code == 200
    assert '"a"' in answer.text
    assert "s3cret" not in answer.text


async def test_a_model_is_loaded_and_unloaded_by_an_operator(served):
    running, neuron = served
    loaded = await running.client.post("/fleet/models/load", json={"model": "gpt-4"})
    assert loaded.json() == {"status": "loaded", "node": "a"}
    assert neuron.models[ENTRY.id]["status"] == "loaded"
    unloaded = await running.client.post("/fleet/models/unload", json={"model": ENTRY.id})
    assert unloaded.json() == {"status": "unloaded", "nodes": ["a"]}
    again = await running.client.post("/fleet/models/unload", json={"model": ENTRY.id})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": 5}, [], {"model": "m", "node": 1}])
async def test_an_order_that_is_none_is_400(served, body):
    running, _ = served
    for verb in ("load", "unload"):
        answer = await running.client.post(f"/fleet/models/{verb}", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (
            400,
            "invalid_request_error",
        )


async def test_an_order_for_an_unknown_node_is_404(served):
    running, _ = served
    answer = await running.client.post("/fleet/models/load", json={"model": "m", "node": "zz"})
    assert answer.status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:31313", ""])
@pytest.mark.parametrize("method", ["GET /fleet", "POST /fleet/models/load"])
async def test_a_page_that_rebinds_its_name_is_refused(served, host, method):
    running, neuron = served
    body = b'{"model": "org/model.v1"}'
    answer = await running.raw(
        b"%b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (method.encode(), host.encode(), len(body), body)
    )
    assert answer.startswith(b"HTTP/1.1 403")
    assert neuron.counts["/models/load"] == 0


def from_peer(peer: str | None, host: str) -> HttpRequest:
    return HttpRequest("GET", "/fleet", {"host": host}, b"", {}, None, "req_1", peer)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1"])
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:31313", "127.0.0.1:1", "[::1]:31313", "[::1]", "LocalHost:1"]
)
async def test_this_machine_may_ask(peer, host):
    _local_only(from_peer(peer, host))


@pytest.mark.parametrize("peer", ["10.0.0.5", "192.168.1.1", "::2", None, "", "localhost", "x"])
async def test_no_other_machine_may_ask(peer):
    with pytest.raises(Forbidden):
        _local_only(from_peer(peer, "localhost:31313"))
