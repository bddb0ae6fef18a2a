"""Embedding requests with engines without a model: recipes, order, failures, records."""

from __future__ import annotations

import logging
import threading
from typing import Any

import attrs
import httpx
import numpy as np
import pytest
import trio
from fakes.engine import FakeEngine
from fakes.served_neuron import MODEL, ServedNeuron, demo_text, ids, served, until

from cortex.engine.load.pooling import EmbeddingRecipe
from cortex.engine.request import Event, Pooling, Request, RequestFailed
from cortex.neuron.embedding import unit
from cortex.neuron.model_text import ModelText
from cortex.neuron.residents import capabilities
from cortex.service import metrics
from cortex.wire.embeddings import unpacked

ROUTE = "/v1/embeddings"
MEAN = EmbeddingRecipe(Pooling.MEAN, normalize=False, stated=True)


def with_recipe(recipe: EmbeddingRecipe) -> ModelText:
    return attrs.evolve(demo_text(), embedding=recipe)


async def ask(neuron: ServedNeuron, given: Any, **fields: Any) -> httpx.Response:
    return await neuron.client.post(ROUTE, json={"model": MODEL, "input": given, **fields})


async def vectors(neuron: ServedNeuron, given: Any, **fields: Any) -> list[Any]:
    answer = await ask(neuron, given, **fields)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return [entry["embedding"] for entry in data]


async def test_a_vector_is_what_the_models_files_ask_for() -> None:
    async with served(text=with_recipe(MEAN)) as neuron:
        assert await vectors(neuron, [7, 8, 9]) == [[3.0, 7.0, 0.0, 1.0]]
    async with served() as neuron:  # no file tells: the last token's, of length 1
        (vector,) = await vectors(neuron, [4, 8, 9])
    assert vector == pytest.approx([3 / 5, 4 / 5, 0, 0])


async def test_cut_vectors_have_length_1_again_whatever_the_files_say() -> None:
    async with served(text=with_recipe(MEAN)) as neuron:
        assert await vectors(neuron, [4, 8, 9], dimensions=2) == [pytest.approx([0.6, 0.8])]
        packed = await vectors(neuron, [4, 8, 9], dimensions=2, encoding_format="base64")
        assert list(unpacked(packed[0])) == pytest.approx([0.6, 0.8])
        for wanted in (5, 10**6):
            refused = await ask(neuron, [4], dimensions=wanted)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "dimensions"


async def test_many_inputs_share_the_engine_and_keep_their_order() -> None:
    most = 0

    class Watched(FakeEngine):
        def step(self) -> list[Event]:
            nonlocal most
            most = max(most, len(self.running))
            return super().step()

    async with served(Watched, max_running=4, max_waiting=0, text=with_recipe(MEAN)) as neuron:
        prompts = [[n % 9 + 1] * (n % 5 + 1) for n in range(50)]
        found = await vectors(neuron, prompts)
        assert neuron.admission.seats(MODEL).taken == 0
    assert [[int(v) for v in vector[:2]] for vector in found] == [[len(p), p[0]] for p in prompts]
    assert most == 4


async def test_an_unsupported_pooling_is_refused_with_its_reason() -> None:
    recipe = EmbeddingRecipe(stated=True, refusal="pooling by cls_token is not supported")
    async with served(text=with_recipe(recipe)) as neuron:
        answer = await ask(neuron, "a")
    assert answer.status_code == 400
    assert "cls_token" in answer.json()["error"]["message"]


def test_an_embedding_model_says_that_it_is_one() -> None:
    assert "embeddings" in capabilities(with_recipe(MEAN))
    assert "embeddings" not in capabilities(demo_text())
    assert "embeddings" not in capabilities(with_recipe(attrs.evolve(MEAN, refusal="why")))


async def test_an_input_may_fill_the_context_and_no_more() -> None:
    async with served(lambda: FakeEngine(max_context=5)) as neuron:
        await vectors(neuron, [1] * 5)
        answer = await ask(neuron, [[1], [1] * 6])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "input[1]"
    assert (error["prompt_tokens"], error["context"]) == (6, 5)


class OneFails(FakeEngine):
    """Fails prompts that begin with 9."""

    def _next(self, request: Request, done: int) -> Event:
        if request.prompt[0] == 9:
            del self.running[request.id]
            return RequestFailed(request.id, ArithmeticError("not finite"))
        return super()._next(request, done)


async def test_a_vector_that_is_not_finite_is_an_error_and_no_json() -> None:
    async with served(OneFails) as neuron:
        answer = await ask(neuron, [[1], [9], [2]])
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert neuron.admission.seats(MODEL).taken == 0
        assert await vectors(neuron, [1])


def test_a_vector_of_zeros_stays() -> None:
    assert unit(np.zeros(3, dtype=np.float32)).tolist() == [0, 0, 0]
    assert np.linalg.norm(unit(np.full(3, 1e-30, dtype=np.float32))) == pytest.approx(1)


async def test_a_client_that_leaves_frees_engine_and_seats() -> None:
    async with served(lambda: FakeEngine(gate=threading.Event())) as neuron:
        async with httpx.AsyncClient(base_url=neuron.url) as client, trio.open_nursery() as nursery:
            body = {"model": MODEL, "input": [[1]] * 9}
            nursery.start_soon(lambda: client.post(ROUTE, json=body))
            await until(lambda: len(neuron.engine.running) == 4)
            nursery.cancel_scope.cancel()
        await until(lambda: neuron.admission.seats(MODEL).taken == 0, 1.0)
        assert neuron.engine.gate is not None
        neuron.engine.gate.set()
        await until(lambda: not neuron.engine.running, 1.0)


async def test_records_count_prompts_and_no_tokens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cortex.neuron.request")
    async with served() as neuron:
        body = (await ask(neuron, ["private words", "more"])).json()
        shown = metrics.render(neuron.registry).decode()
    count = len(ids("private words")) + len(ids("more"))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == count
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert body["timings"]["completion_tokens"] == 0
    label = f'{{model="{MODEL}"'
    assert f"neuron_prompt_tokens_total{label}}} {count}.0" in shown
    assert f'neuron_requests_total{{end="embedded",model="{MODEL}"}} 2.0' in shown
    assert f"neuron_request_duration_seconds_count{label}}} 2.0" in shown
    assert "neuron_generation_tokens_total{" not in shown
    assert "neuron_time_to_first_token_seconds_count{" not in shown
    (record,) = [r for r in caplog.records if r.name == "cortex.neuron.request"]
    fields: Any = vars(record)["cortex_fields"]
    assert (fields["end"], fields["prompt"], fields["completion"]) == ("embedded", count, 0)
    assert "private" not in str(fields)
