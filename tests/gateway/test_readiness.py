"""`/readyz`: a real token, seldom, and without any trace in what requests count."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from fakes.gateway import CHAT, chat, gateway
from fakes.neuron import Asked, FakeNeuron, Reply, error_reply, json_reply

from cortex.config.catalogue import CatalogueEntry

COMPLETIONS = "/v1/completions"
ENTRY = CatalogueEntry("org/unloaded", vram_mb=1000, keep_alive=1.0)


@pytest.fixture
def neuron():
    neuron = FakeNeuron("a", token="s3cret")
    neuron.hold("m")
    return neuron


@asynccontextmanager
async def ready_gateway(*neurons, **settings):
    with trio.fail_after(30):
        async with gateway(*neurons, models=(ENTRY,), **settings) as running:
            for neuron in neurons:
                await running.until(1, "cortex_neuron_up", within=5, node=neuron.name)
            yield running


async def asked(running):
    answer = await running.client.get("/readyz")
    return answer.status_code, answer.json()


async def test_a_token_of_a_loaded_model_makes_it_ready_and_is_asked_for_once(neuron):
    async with ready_gateway(neuron) as running:
        for _ in range(5):
            status, body = await asked(running)
            assert (status, body["ready"]) == (200, True)
            assert body["token"]["result"] == "ok"
            assert body["token"]["by"] == "probe"
            assert body["nodes"] == {"healthy": 1, "total": 1}
        assert neuron.counts[COMPLETIONS] == 1
        sent = neuron.last(COMPLETIONS)
        assert (sent.json["model"], sent.json["max_tokens"]) == ("m", 1)
        assert sent.headers["x-cortex-caller"] == "readiness"
        assert await running.total("cortex_readiness_probes_total", result="ok") == 1


async def test_it_is_no_request_and_no_use_of_the_model(neuron):
    async with ready_gateway(neuron) as running:
        assert (await asked(running))[0] == 200
        assert neuron.counts[COMPLETIONS] == 1
        for name in ("cortex_requests_total", "cortex_prompt_tokens_total", "cortex_in_flight"):
            assert await running.total(name) == 0
        assert neuron.counts["/models/load"] == neuron.counts["/models/unload"] == 0


async def test_who_asks_all_the_time_keeps_no_idle_model(neuron):
    async with ready_gateway(neuron, readiness_seconds=0.2) as running:
        order = {"model": ENTRY.id}
        assert (await running.client.post("/fleet/models/load", json=order)).status_code == 200
        with trio.fail_after(10):
            while not neuron.counts["/models/unload"]:
                assert (await asked(running))[0] == 200
                await trio.sleep(0.1)
        assert neuron.counts[COMPLETIONS] > 2
        assert neuron.counts["/models/load"] == 1


async def test_nothing_loaded_is_ready_and_loads_nothing(neuron):
    neuron.models.clear()
    async with ready_gateway(neuron) as running:
        status, body = await asked(running)
        assert (status, "token" in body) == (200, False)
        assert neuron.counts["/models/load"] == neuron.counts[COMPLETIONS] == 0


async def test_zero_seconds_ask_for_no_token(neuron):
    async with ready_gateway(neuron, readiness_seconds=0.0) as running:
        assert await asked(running) == (
            200,
            {"ready": True, "nodes": {"healthy": 1, "total": 1}},
        )
        assert neuron.counts[COMPLETIONS] == 0


@pytest.mark.parametrize(
    "reply",
    [
        error_reply(500, "internal_error"),
        error_reply(503, "overloaded"),
        json_reply({"object": "text_completion", "choices": []}),
        Reply(200, (b"not json",)),
        Reply(200, (b'{"cho',), abort=True),
    ],
    ids=["500", "full", "no-choice", "no-json", "cut"],
)
async def test_no_token_is_503_and_names_nothing(neuron, reply):
    neuron.scripts[COMPLETIONS] = lambda _: reply
    async with ready_gateway(neuron) as running:
        for _ in range(3):
            status, body = await asked(running)
            assert (status, body["ready"]) == (503, False)
            assert body["token"]["result"] == "failed"
            assert not {"m", "a"} & {*body, *map(str, body.values())}
        assert neuron.counts[COMPLETIONS] == 1
        assert await running.total("cortex_readiness_probes_total", result="failed") == 1


async def test_a_clients_token_is_proof(neuron):
    neuron.scripts[COMPLETIONS] = lambda _: error_reply(503, "overloaded")
    async with ready_gateway(neuron) as running:
        assert (await asked(running))[0] == 503
        answer = await running.client.post(CHAT, json=chat())
        assert answer.status_code == 200
        status, body = await asked(running)
        assert (status, body["token"]["by"]) == (200, "traffic")
        assert neuron.counts[COMPLETIONS] == 1


async def test_a_stream_that_runs_is_proof_before_its_end(neuron):
    go = trio.Event()
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    neuron.scripts[CHAT] = lambda _: Reply(200, (frame, frame, go), "text/event-stream")
    async with (
        ready_gateway(neuron) as running,
        running.client.stream("POST", CHAT, json=chat(stream=True)) as stream,
    ):
        async for line in stream.aiter_lines():
            if '"x"' in line:
                break
        status, body = await asked(running)
        assert (status, body["token"]["by"], neuron.counts[COMPLETIONS]) == (200, "traffic", 0)
        go.set()


async def test_a_wedged_neuron_is_503_after_the_bound_and_another_one_is_asked(neuron, monkeypatch):
    never = trio.Event()
    neuron.scripts[COMPLETIONS] = lambda _: Reply(200, (never,))
    monkeypatch.setattr("cortex.gateway.readiness.PROBE_SECONDS", 0.5)
    monkeypatch.setattr("cortex.gateway.readiness.NEXT_SECONDS", 0.1)
    async with ready_gateway(neuron) as running:
        status, body = await asked(running)
        assert (status, body["token"]["result"]) == (503, "timed_out")
        assert await running.total("cortex_readiness_probes_total", result="timed_out") == 1
    other = FakeNeuron("b")
    other.hold("m")
    neuron.port = 0
    async with ready_gateway(neuron, other) as running:
        status, body = await asked(running)
        assert (status, body["token"]["result"]) == (200, "ok")
        assert other.counts[COMPLETIONS] == 1


async def test_a_restarted_neuron_is_tried_again_at_once(neuron):
    neuron.scripts[COMPLETIONS] = lambda _: error_reply(500, "internal_error")
    async with ready_gateway(neuron) as running:
        await trio.sleep(0.3)  # for an uptime that can begin again
        assert (await asked(running))[0] == 503
        del neuron.scripts[COMPLETIONS]
        assert (await asked(running))[0] == 503
        neuron.restarted()
        with trio.fail_after(5):
            while (await asked(running))[0] != 200:
                await trio.sleep(0.05)
        assert neuron.counts[COMPLETIONS] == 2


async def test_an_embedding_model_is_asked_for_a_vector(neuron):
    neuron.models.clear()
    neuron.hold("e", capabilities=["text", "embeddings"])

    def vector(request: Asked) -> Reply:
        return json_reply({"data": [{"embedding": [1.0]}]})

    neuron.scripts["/v1/embeddings"] = vector
    async with ready_gateway(neuron) as running:
        assert (await asked(running))[0] == 200
        assert neuron.counts["/v1/embeddings"] == 1
