from __future__ import annotations

import time
from functools import partial

import pytest
import trio
from fakes.gateway import gateway
from fakes.neuron import FakeNeuron

from cortex import __version__
from cortex.config.catalogue import CatalogueEntry
from cortex.gateway import composition
from cortex.gateway.events import EventLog
from cortex.service import stamp

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
    build = stamp.running()
    said = {"version": __version__, "commit": build.commit, "flavour": "checkout"}
    assert (await running.client.get("/version")).json() == said


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
    for verb in ("load", "unload", "pin", "unpin"):
        answer = await running.client.post(f"/fleet/models/{verb}", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (
            400,
            "invalid_request_error",
        )


async def test_an_order_for_an_unknown_node_is_404(served):
    running, _ = served
    answer = await running.client.post("/fleet/models/load", json={"model": "m", "node": "zz"})
    assert answer.status_code == 404


async def test_a_model_is_pinned_by_any_of_its_names_and_unpinned(served):
    running, _ = served
    asked = {"model": "gpt-4", "node": "a"}
    answer = await running.client.post("/fleet/models/pin", json=asked)
    assert answer.json() == {"status": "pinned", "model": ENTRY.id, "node": "a"}
    await running.client.post("/fleet/models/pin", json={"model": "m"})
    body = (await running.client.get("/fleet")).json()
    assert body["pins"] == [{"model": "m"}, {"model": ENTRY.id, "node": "a"}]
    assert [model["pinned"] for model in body["nodes"][0]["models"]] == [True]
    answer = await running.client.post("/fleet/models/unpin", json={"model": "gpt-4"})
    assert answer.json() == {"status": "unpinned", "model": ENTRY.id, "nodes": ["a"]}
    again = await running.client.post("/fleet/models/unpin", json={"model": "gpt-4"})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    here = await running.client.post("/fleet/models/unpin", json={"model": "m", "node": "a"})
    assert here.status_code == 409


@pytest.mark.parametrize("asked", [{"model": "nope"}, {"model": "m", "node": "zz"}])
async def test_what_nobody_knows_cannot_be_pinned(served, asked):
    running, _ = served
    answer = await running.client.post("/fleet/models/pin", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert (await running.client.get("/fleet")).json()["pins"] == []


async def test_a_load_that_nobody_waits_for_is_answered_at_once(served):
    running, neuron = served
    neuron.load_gate = trio.Event()
    asked = {"model": ENTRY.id, "wait": False}
    answer = await running.client.post("/fleet/models/load", json=asked)
    assert (answer.status_code, answer.json()) == (202, {"status": "loading"})
    async with running.events() as events:
        await events.until("snapshot")
        neuron.load_gate.set()
        while (await events.until("model_loaded"))["model"] != ENTRY.id:
            pass
    wrong = await running.client.post("/fleet/models/load", json={**asked, "node": "zz"})
    assert wrong.status_code == 404


async def test_events_begin_with_the_fleet_and_go_on_with_what_happens(served):
    running, neuron = served
    async with running.events() as events:
        snapshot = await events.until("snapshot")
        assert [node["name"] for node in snapshot["nodes"]] == ["a"]
        await running.client.post("/fleet/models/pin", json={"model": "m"})
        assert await events.until("pinned") == {
            "kind": "pinned",
            "at": pytest.approx(time.time(), abs=60),
            "model": "m",
        }
        neuron.kill()
        assert (await events.until("node_down"))["node"] == "a"


async def test_a_reader_that_comes_back_gets_what_it_has_missed(served):
    running, _ = served
    async with running.events() as events:
        await events.until("snapshot")
        await running.client.post("/fleet/models/pin", json={"model": "m"})
        await events.until("pinned")
        last = events.last_id
    await running.client.post("/fleet/models/unpin", json={"model": "m"})
    async with running.events(last) as events:
        assert (await events.next())["kind"] == "unpinned"
    for stranger in ("00000000-1", last[:9] + "999", "x"):
        async with running.events(stranger) as events:
            assert (await events.next())["kind"] == "snapshot"


async def test_a_reader_that_falls_behind_is_told_and_begins_anew(monkeypatch):
    monkeypatch.setattr(composition, "EventLog", partial(EventLog, 4))
    neuron = FakeNeuron("a")
    neuron.hold("m")
    with trio.fail_after(20):
        async with gateway(neuron) as running:
            await running.client.post("/fleet/models/pin", json={"model": "m"})
            async with running.events() as events:
                await events.until("snapshot")
                last = events.last_id
            for verb in ("unpin", "pin") * 3:
                await running.client.post(f"/fleet/models/{verb}", json={"model": "m"})
            async with running.events(last) as events:
                assert await events.next() == {"kind": "missed", "count": 2}
                assert (await events.next())["pins"] == [{"model": "m"}]


async def test_silence_is_filled_and_a_drain_ends_the_events():
    neuron = FakeNeuron("a")
    with trio.fail_after(20):
        settings = {"keepalive_seconds": 0.05, "drain_seconds": 15.0}
        async with gateway(neuron, **settings) as running, running.events() as events:
            await events.reading.until(b": keep-alive")
            running.stop.set()
            await events.reading.rest()
            with trio.fail_after(5):
                await running.ended.wait()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:31313", ""])
@pytest.mark.parametrize(
    "method",
    ["GET /fleet", "GET /fleet/events", "POST /fleet/models/load", "POST /fleet/models/pin"],
)
async def test_a_page_that_rebinds_its_name_is_refused(served, host, method):
    running, neuron = served
    body = b'{"model": "org/model.v1"}'
    answer = await running.raw(
        b"%b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (method.encode(), host.encode(), len(body), body)
    )
    assert answer.startswith(b"HTTP/1.1 403")
    assert neuron.counts["/models/load"] == 0
