from __future__ import annotations

import attrs
import pytest
import trio
from fakes.gateway import CHAT, chat, gateway, text_of
from fakes.neuron import FakeNeuron, Reply, chunk

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.errors import ConfigError
from cortex.config.gateway import EvictionSettings, NeuronNode

ENTRY = CatalogueEntry("m", vram_mb=1000)
END = [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]


def hold_stream(neuron: FakeNeuron) -> trio.Event:
    """Streams wait for the event between their first word and their end."""
    go_on = trio.Event()
    frames = [chunk("m", {"content": "Hel"}), go_on, chunk("m", {"content": "lo"}), *END]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    return go_on


@pytest.fixture
async def served():
    neuron = FakeNeuron("a")
    with trio.fail_after(20):
        async with gateway(neuron, models=(ENTRY,)) as running:
            yield running, neuron


async def reload(running, query: str = "") -> dict:
    answer = await running.client.post(f"/fleet/reload{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_dry_run_says_what_would_change_and_changes_nothing(served):
    running, _ = served
    running.files.catalogue = Catalogue((ENTRY, CatalogueEntry("n")), {"x": "n"})
    answer = await reload(running, "?dry_run=true")
    assert answer["status"] == "planned"
    assert answer["plan"]["models"]["added"] == ["n"]
    assert (await running.client.get("/v1/models/x")).status_code == 404
    answer = await reload(running)
    assert (answer["status"], answer["plan"]["aliases"]["added"]) == ("reloaded", ["x"])
    assert (await running.client.get("/v1/models/x")).status_code == 200
    assert await running.total("cortex_config_reloads_total", result="applied") == 1


async def test_a_file_that_is_wrong_changes_nothing_and_is_named(served):
    running, _ = served
    running.files.error = ConfigError("/etc/models.toml: models[0].id: required key is missing")
    for query in ("", "?dry_run=true"):
        answer = await running.client.post(f"/fleet/reload{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            422,
            "invalid_configuration",
        )
        assert answer.json()["error"]["message"] == str(running.files.error)
    assert (await running.client.post(CHAT, json=chat())).status_code == 200
    assert await running.total("cortex_config_reloads_total", result="refused") == 1


async def test_a_question_that_is_none_is_400(served):
    running, _ = served
    answer = await running.client.post("/fleet/reload?dry_run=yes")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dry_run")


async def test_a_hangup_reloads_and_is_told_as_an_event(served):
    running, _ = served
    async with running.events() as events:
        await events.until("snapshot")
        running.files.error = ConfigError("broken")
        running.files.hang_up()
        await running.until(1, "cortex_config_reloads_total", result="refused")
        running.files.error = None
        running.files.catalogue = Catalogue((), {})
        running.files.hang_up()
        told = await events.until("reloaded")
        assert told["plan"]["models"]["removed"] == ["m"]


async def test_a_stream_lives_through_the_removal_of_its_node_and_its_model(served):
    running, neuron = served
    go_on = hold_stream(neuron)
    async with running.stream(chat(stream=True)) as reading:
        await reading.until(b"Hel")
        running.files.config = attrs.evolve(running.files.config, neurons=())
        running.files.catalogue = Catalogue()
        answer = await reload(running)
        assert answer["plan"]["nodes"]["drain"] == ["a"]
        assert (await running.client.post(CHAT, json=chat())).status_code == 404
        go_on.set()
        assert text_of(await reading.rest()) == "Hello"


async def test_a_node_that_is_added_serves():
    first, second = FakeNeuron("a"), FakeNeuron("b")
    second.hold("only-there")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, gateway(first) as running:
            await nursery.start(second.run)
            node = NeuronNode("b", second.url)
            nodes = (*running.files.config.neurons, node)
            running.files.config = attrs.evolve(running.files.config, neurons=nodes)
            async with running.events() as events:
                await events.until("snapshot")
                assert (await reload(running))["plan"]["nodes"]["added"] == ["b"]
                assert (await events.until("node_added"))["node"] == "b"
                assert (await events.until("model_loaded"))["model"] == "only-there"
            answer = await running.client.post(CHAT, json=chat("only-there"))
            assert answer.status_code == 200
            nursery.cancel_scope.cancel()


async def test_a_model_that_is_to_be_loaded_otherwise_is_drained_and_loaded_again(served):
    running, neuron = served
    await running.client.post(CHAT, json=chat())
    running.files.catalogue = Catalogue((attrs.evolve(ENTRY, quant="q4_k_m"),))
    async with running.events() as events:
        await events.until("snapshot")
        (drained,) = (await reload(running))["plan"]["models"]["drain"]
        assert drained == {"node": "a", "model": "m", "why": "quant changed"}
        assert (await events.until("model_evicted"))["reason"] == "reload"
        await events.until("model_loaded")
    assert neuron.last("/models/load").json["quant"] == "q4_k_m"
    assert neuron.counts["/models/unload"] == 1


async def test_a_model_that_was_taken_out_of_the_catalogue_is_unloaded(served):
    running, neuron = served
    await running.client.post(CHAT, json=chat())
    running.files.catalogue = Catalogue()
    await reload(running)
    async with running.events() as events:
        snapshot = await events.until("snapshot")
        if snapshot["nodes"][0]["models"]:
            await events.until("model_unloaded")
    assert neuron.models == {}
    assert (await running.client.post(CHAT, json=chat())).status_code == 404


async def test_a_model_that_was_renamed_is_unloaded_under_its_old_name(served):
    running, neuron = served
    await running.client.post(CHAT, json=chat())
    renamed = CatalogueEntry("n", source="m", vram_mb=1000)
    running.files.catalogue = Catalogue((renamed,), {"m": "n"})
    async with running.events() as events:
        await events.until("snapshot")
        await reload(running)
        assert (await events.until("model_evicted"))["model"] == "m"
        answer = await running.client.post(CHAT, json=chat())
        assert (answer.status_code, answer.json()["model"]) == (200, "m")
    assert set(neuron.models) == {"n"}


async def test_a_restart_is_asked_for_where_it_is_needed(served):
    running, _ = served
    running.files.settings(listen="127.0.0.1:9", queue_depth=7)
    for _ in range(2):
        plan = (await reload(running))["plan"]
        assert plan["needs_restart"] == ["gateway.listen"]
    assert [change["key"] for change in plan["settings"]] == ["gateway.listen"]


async def test_the_wait_for_a_load_changes_at_once(served):
    running, neuron = served
    neuron.load_gate = trio.Event()
    running.files.settings(load_wait_seconds=0.05)
    await reload(running)
    answer = await running.client.post(CHAT, json=chat())
    assert (answer.status_code, answer.json()["error"]["loading"]["node"]) == (503, "a")


async def test_the_queue_changes_at_once(served):
    running, neuron = served
    neuron.hold("m")
    neuron.model_loads = [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]
    go_on = hold_stream(neuron)
    async with running.stream(chat(stream=True)) as reading:
        await reading.until(b"Hel")
        running.files.settings(queue_wait_seconds=0.05, queue_depth=1)
        await reload(running)
        answer = await running.client.post(CHAT, json=chat())
        assert answer.status_code == 429
        assert "within 0.05 s" in answer.json()["error"]["message"]
        go_on.set()
        await reading.rest()


async def test_the_pace_of_keep_alives_changes_for_new_streams(served):
    running, neuron = served
    go_on = hold_stream(neuron)
    running.files.settings(keepalive_seconds=0.02, commit_after_seconds=0.01)
    await reload(running)
    async with running.stream(chat(stream=True)) as reading:
        await reading.until(b": ")
        go_on.set()
        await reading.rest()


async def test_readiness_asks_for_no_token_any_more(served):
    running, _ = served
    await running.client.post(CHAT, json=chat())
    assert "token" in (await running.client.get("/readyz")).json()
    running.files.settings(readiness_seconds=0.0)
    assert (await reload(running))["plan"]["needs_restart"] == []
    told = (await running.client.get("/readyz")).json()
    assert told["ready"]
    assert "token" not in told


@pytest.mark.slow
async def test_idle_models_are_unloaded_by_the_new_keep_alive(served):
    running, neuron = served
    await running.client.post(CHAT, json=chat())
    eviction = EvictionSettings(keep_alive=0.0)
    running.files.config = attrs.evolve(running.files.config, eviction=eviction)
    async with running.events() as events:
        await events.until("snapshot")
        await reload(running)
        assert (await events.until("model_evicted"))["reason"] == "idle"
    assert neuron.models == {}
