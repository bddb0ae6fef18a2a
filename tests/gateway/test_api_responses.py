from __future__ import annotations

import itertools

import pytest
import trio
from fakes.gateway import CHAT, gateway
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply, json_reply
from fakes.responses_client import ResponseFailed, accumulate, check_response

from cortex.config.catalogue import CatalogueEntry

RESPONSES = "/v1/responses"
COUNT = f"{RESPONSES}/input_tokens"
ENTRY = CatalogueEntry("m", source="org/m", vram_mb=1000)


def ask(model: str = "m", **fields):
    return {"model": model, "input": "Hi", **fields}


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


@pytest.fixture
async def served(neuron):
    with trio.fail_after(20):
        async with gateway(neuron, models=(ENTRY,), aliases={"gpt-x": "m"}) as running:
            yield running


async def test_a_response_in_the_name_that_was_asked_for(served):
    answer = await served.client.post(RESPONSES, json=ask("gpt-x"))
    assert answer.status_code == 200
    body = answer.json()
    check_response(body)
    assert (body["model"], body["status"]) == ("gpt-x", "completed")
    assert body["output"][0]["content"][0]["text"] == "Hello, world"
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 2


async def test_a_streamed_response_keeps_the_protocol(served):
    async with served.stream(ask("gpt-x", stream=True), RESPONSES) as reading:
        assert reading.status == 200
        assert reading.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        built = accumulate(await reading.rest())
    assert built["model"] == "gpt-x"
    assert built["output"][0]["content"][0]["text"] == "Hello, world"
    assert built["usage"]["output_tokens"] == 3


async def test_what_is_sent_upstream_is_a_chat(served, neuron):
    names = {"prompt_cache_key": "k", "safety_identifier": "s"}
    body = ask("gpt-x", instructions="Be kind.", max_output_tokens=9, **names)
    await served.client.post(RESPONSES, json=body)
    sent = neuron.last(CHAT).json
    assert sent["model"] == "m"
    assert sent["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]
    assert (sent["max_completion_tokens"], sent["on_overflow"]) == (9, "clamp")
    assert {name: sent[name] for name in names} == names


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_headers_are_there(served, stream):
    answer = await served.client.post(RESPONSES, json=ask("gpt-x", stream=stream))
    assert answer.headers["openai-model"] == "gpt-x"
    assert answer.headers["openai-version"] == "2020-10-01"
    assert int(answer.headers["openai-processing-ms"]) >= 0


async def test_it_is_counted_under_its_own_dialect(served):
    await served.client.post(RESPONSES, json=ask())
    await served.client.post(RESPONSES, content=b"{")
    await served.until(1, "cortex_requests_total", dialect="openai-responses", code="200")
    await served.until(1, "cortex_requests_total", dialect="openai-responses", code="400")


async def test_counting_takes_no_slot_and_loads_nothing():
    neuron = FakeNeuron("a")
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,)) as served:
            answer = await served.client.post(COUNT, json=ask())
            body = answer.json()
            assert (answer.status_code, body["object"]) == (200, "response.input_tokens")
            assert body["input_tokens"] > 0
            assert (neuron.counts["/tokenize"], neuron.counts["/models/load"]) == (1, 0)


@pytest.mark.parametrize("path", [RESPONSES, COUNT])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "m"}', b'{"input": "Hi"}'])
async def test_a_wrong_body_is_400(served, neuron, path, body):
    answer = await served.client.post(path, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert neuron.counts[CHAT] == 0


async def test_an_unknown_model_is_404(served):
    for path in (RESPONSES, COUNT):
        answer = await served.client.post(path, json=ask("nobody/nothing"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (error_reply(400, "template_error"), 400, "template_error"),
        (error_reply(503, "load_failed", retry_after=9), 503, "load_failed"),
        (error_reply(503, "overloaded", retry_after=9), 429, "overloaded"),
        (error_reply(502, "upstream_error"), 502, "upstream_error"),
    ],
)
async def test_a_refusal_before_the_stream_is_a_status(neuron, reply, status, code, stream):
    neuron.scripts[CHAT] = lambda asked: reply
    with trio.fail_after(10):
        async with gateway(neuron, queue_wait_seconds=0) as served:
            answer = await served.client.post(RESPONSES, json=ask(stream=stream))
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_prompt_that_is_too_long_is_a_status_or_an_event(served, neuron):
    told = {"message": "too long", "code": "context_length_exceeded", "prompt_tokens": 9}
    neuron.scripts[CHAT] = lambda asked: json_reply({"error": told}, 400)
    answer = await served.client.post(RESPONSES, json=ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )
    answer = await served.client.post(RESPONSES, json=ask(stream=True))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    with pytest.raises(ResponseFailed, match="too long") as caught:
        accumulate(answer.content)
    assert caught.value.code == "context_length_exceeded"
    await served.until(2, "cortex_requests_total", dialect="openai-responses", code="400")


async def test_a_slow_prefill_is_bridged_with_comments(neuron):
    go_on = trio.Event()
    frames = [go_on, *neuron._stream("m", {"prompt_tokens": 3, "completion_tokens": 3}, {})]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    with trio.fail_after(10):
        async with (
            gateway(neuron, keepalive_seconds=0.05) as served,
            served.stream(ask(stream=True), RESPONSES) as reading,
        ):
            await reading.until(b": keep-alive")
            assert reading.received.startswith(b"event: response.created")
            go_on.set()
            built = accumulate(await reading.rest())
    assert built["output"][0]["content"][0]["text"] == "Hello, world"


async def test_a_client_that_leaves_mid_stream_frees_the_neuron(served, neuron):
    frames = itertools.chain.from_iterable(itertools.repeat((chunk("m", {"content": "x"}), 0.02)))
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with served.stream(ask(stream=True), RESPONSES) as reading:
        await reading.until(b"output_text.delta")
    with trio.fail_after(1):
        await served.until(1, "cortex_client_disconnects_total")
        await served.until(0, "cortex_in_flight")
        while neuron.in_flight:
            await trio.sleep(0.01)
