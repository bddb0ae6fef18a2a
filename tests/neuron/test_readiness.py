"""`/readyz` of a neuron: each loaded model has lately given a token; `/livez` asks nothing."""

from __future__ import annotations

import threading
from typing import Any

import attrs
import trio
from fakes.engine import FakeEngine
from fakes.served_neuron import MODEL, ScriptedEngine, ServedNeuron, demo_text, served

from cortex.engine.load.pooling import EmbeddingRecipe


async def asked(neuron: ServedNeuron) -> tuple[int, dict[str, Any]]:
    answer = await neuron.client.get("/readyz")
    return answer.status_code, answer.json()


def requests_of(neuron: ServedNeuron) -> list[str]:
    return [what for what in neuron.engine.history if what.startswith("add ")]


def probes(neuron: ServedNeuron, result: str) -> float | None:
    labels = {"result": result}
    return neuron.registry.get_sample_value("neuron_readiness_probes_total", labels)


async def test_a_token_is_asked_for_once_and_counts_as_no_request() -> None:
    async with served() as neuron:
        for _ in range(3):
            status, body = await asked(neuron)
            assert (status, body["ready"], body["models"]) == (200, True, 1)
            assert body["token"]["result"] == "ok"
            assert MODEL not in str(body)
        (only,) = requests_of(neuron)
        assert only.startswith("add readiness-")
        assert probes(neuron, "ok") == 1
        assert neuron.admission.seats(MODEL).taken == 0
        text = (await neuron.client.get("/metrics")).text
        assert "neuron_requests_total{" not in text


async def test_neither_route_needs_the_token_and_the_others_do() -> None:
    async with served(token="s3cret") as neuron:
        assert (await asked(neuron))[0] == 200
        alive = await neuron.client.get("/livez")
        assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
        assert (await neuron.client.get("/health")).status_code == 401


async def test_a_clients_token_is_proof() -> None:
    async with served() as neuron:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 2}
        assert (await neuron.client.post("/v1/completions", json=body)).status_code == 200
        status, told = await asked(neuron)
        assert (status, told["token"]["by"]) == (200, "traffic")
        assert not [each for each in requests_of(neuron) if "readiness" in each]


async def test_an_engine_that_fails_the_request_is_503() -> None:
    def failing() -> FakeEngine:
        return ScriptedEngine(script=(RuntimeError("boom"),))

    async with served(failing) as neuron:
        for _ in range(2):
            status, body = await asked(neuron)
            assert (status, body["token"]["result"]) == (503, "failed")
        assert len(requests_of(neuron)) == 1
        assert probes(neuron, "failed") == 1


async def test_a_device_that_stands_still_is_503_after_the_bound(monkeypatch) -> None:
    monkeypatch.setattr("cortex.neuron.readiness.PROBE_SECONDS", 0.2)
    gate = threading.Event()
    async with served(lambda: FakeEngine(gate=gate)) as neuron:
        try:
            status, body = await asked(neuron)
            assert (status, body["token"]["result"]) == (503, "timed_out")
        finally:
            gate.set()


async def test_without_a_model_or_with_zero_seconds_no_token_is_asked_for() -> None:
    async with served() as neuron:
        await neuron.lifecycle.unload(MODEL)
        assert await asked(neuron) == (200, {"ready": True, "models": 0})
    async with served(readiness_seconds=0.0) as neuron:
        assert await asked(neuron) == (200, {"ready": True, "models": 1})
        assert not requests_of(neuron)


async def test_a_neuron_that_drains_is_not_ready() -> None:
    async with served() as neuron:
        neuron.lifecycle.drain()
        status, body = await asked(neuron)
        assert (status, body["reason"]) == (503, "it is shutting down")


async def test_an_embedding_model_gives_a_vector() -> None:
    text = attrs.evolve(demo_text(), embedding=EmbeddingRecipe(stated=True))
    async with served(text=text) as neuron:
        with trio.fail_after(5):
            assert (await asked(neuron))[0] == 200
        assert len(requests_of(neuron)) == 1
