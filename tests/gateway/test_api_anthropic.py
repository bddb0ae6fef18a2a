from __future__ import annotations

import itertools

import pytest
import trio
from fakes.anthropic_client import StreamError, accumulate
from fakes.gateway import CHAT, MESSAGES, gateway, message
from fakes.images import png
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply, json_reply
from httpx import Response

from cortex.config.catalogue import CatalogueEntry

COUNT = f"{MESSAGES}/count_tokens"
ENTRY = CatalogueEntry("m", source="org/m", vram_mb=1000)


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


@pytest.fixture
async def served(neuron):
    with trio.fail_after(20):
        async with gateway(neuron, models=(ENTRY,), aliases={"claude-x": "m"}) as running:
            yield running


def assert_envelope(answer: Response, status: int, kind: str):
    body = answer.json()
    assert (answer.status_code, body["error"]["type"]) == (status, kind), body
    assert set(body) >= {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
async def test_a_message_is_answered_in_the_name_that_was_asked_for(served, prefix):
    answer = await served.client.post(prefix + MESSAGES, json=message("claude-x"))
    body = answer.json()
    assert (answer.status_code, body["type"], body["role"]) == (200, "message", "assistant")
    assert body["model"] == "claude-x"
    assert body["content"] == [{"type": "text", "text": "Hello, world"}]
    assert body["stop_reason"] == "end_turn"
    assert body["usage"]["output_tokens"] == 3
    assert answer.headers["anthropic-version"] == "2023-06-01"
    assert answer.headers["request-id"]


async def test_a_streamed_message_keeps_the_protocol(served):
    async with served.stream(message("claude-x", stream=True), MESSAGES) as reading:
        assert reading.status == 200
        assert reading.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        built = accumulate(await reading.rest())
    assert built["model"] == "claude-x"
    assert built["content"] == [{"type": "text", "text": "Hello, world"}]
    assert built["stop_reason"] == "end_turn"
    assert built["usage"]["output_tokens"] == 3


async def test_what_is_sent_upstream_is_a_chat(served, neuron):
    await served.client.post(MESSAGES, json=message("claude-x", system="Be kind.", top_k=5))
    sent = neuron.last(CHAT)
    assert (sent.path, sent.json["model"]) == (CHAT, "m")
    assert sent.json["messages"][0] == {"role": "system", "content": "Be kind."}
    assert sent.json["on_overflow"] == "error"


async def test_fields_betas_and_blocks_nobody_knows_are_no_error(served):
    body = message(new_field={"a": 1}, metadata={"user_id": "x"}, speed="fast")
    headers = {"anthropic-beta": "made-up-2030-01-01", "anthropic-version": "2030-01-01"}
    answer = await served.client.post(MESSAGES, json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["anthropic-version"] == "2030-01-01"


async def test_counting_takes_no_slot_and_loads_nothing():
    neuron = FakeNeuron("a")
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,)) as served:
            answer = await served.client.post(COUNT, json=message())
            assert (answer.status_code, list(answer.json())) == (200, ["input_tokens"])
            assert answer.json()["input_tokens"] > 0
            assert (neuron.counts["/tokenize"], neuron.counts["/models/load"]) == (1, 0)
            asked = next(asked for asked in neuron.requests if asked.path == "/tokenize")
            assert (asked.json["model"], asked.json["source"]) == ("m", "org/m")


@pytest.mark.parametrize("count", [-1, "7", None, 1.5, True])
async def test_a_count_that_is_none_is_the_upstreams_error(served, neuron, count):
    neuron.scripts["/tokenize"] = lambda asked: json_reply({"count": count})
    answer = await served.client.post(COUNT, json=message())
    assert_envelope(answer, 500, "api_error")


# Errors


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": "m"}', b'{"model": "m", "messages": 5}']
)
async def test_a_wrong_body_is_400(served, neuron, path, body):
    answer = await served.client.post(path, content=body)
    assert_envelope(answer, 400, "invalid_request_error")
    assert neuron.counts[CHAT] == 0


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_an_unknown_model_is_404_and_named(served, path):
    answer = await served.client.post(path, json=message("claude-9"))
    assert "claude-9" in assert_envelope(answer, 404, "not_found_error")["message"]


async def test_an_unknown_route_is_404_in_the_dialect_of_its_path(served):
    answer = await served.client.post("/v1/messages/nope", json=message())
    assert_envelope(answer, 404, "not_found_error")
    assert "code" in (await served.client.get("/v1/nope")).json()["error"]


async def test_a_wrong_method_is_405_with_what_is_allowed(served):
    answer = await served.client.get(MESSAGES)
    assert_envelope(answer, 405, "invalid_request_error")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "status", "kind"),
    [
        (error_reply(400, "template_error"), 400, "invalid_request_error"),
        (error_reply(503, "load_failed", retry_after=9), 529, "overloaded_error"),
        (error_reply(503, "overloaded", retry_after=9), 529, "overloaded_error"),
        (error_reply(502, "upstream_error"), 500, "api_error"),
        (error_reply(500, "internal_error"), 500, "api_error"),
    ],
)
async def test_a_neurons_refusal_is_a_status_of_the_dialect(neuron, reply, status, kind, stream):
    neuron.scripts[CHAT] = lambda asked: reply
    with trio.fail_after(10):
        async with gateway(neuron, queue_wait_seconds=0) as served:
            answer = await served.client.post(MESSAGES, json=message(stream=stream))
            assert_envelope(answer, status, kind)
            assert ("retry-after" in answer.headers) is (status == 529)


async def test_a_prompt_that_is_too_long_has_the_text_that_clients_match(served, neuron):
    told = {
        "message": "too long",
        "code": "context_length_exceeded",
        "prompt_tokens": 9000,
        "max_tokens": 64,
        "context": 8192,
    }
    neuron.scripts[CHAT] = lambda asked: json_reply({"error": told}, 400)
    answer = await served.client.post(MESSAGES, json=message())
    error = assert_envelope(answer, 400, "invalid_request_error")
    assert error["message"] == "prompt is too long: 9000 tokens > 8192 maximum"


async def test_a_neuron_killed_within_a_stream_gives_an_error_event_and_no_stop(served, neuron):
    frames = [chunk("m", {"content": "Hel"}), trio.Event()]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with served.stream(message(stream=True), MESSAGES) as reading:
        await reading.until(b"Hel")
        neuron.kill()
        stream = await reading.rest()
    with pytest.raises(StreamError) as caught:
        accumulate(stream)
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"]
    assert b"message_stop" not in stream
    assert b"message_delta" not in stream


async def test_a_slow_prefill_is_bridged_with_message_start_and_pings(neuron):
    go_on = trio.Event()
    frames = [go_on, *neuron._stream("m", {"completion_tokens": 3}, {})]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    with trio.fail_after(10):
        async with (
            gateway(neuron, keepalive_seconds=0.05) as served,
            served.stream(message(stream=True), MESSAGES) as reading,
        ):
            await reading.until(b"event: ping")
            assert reading.received.startswith(b"event: message_start")
            go_on.set()
            built = accumulate(await reading.rest())
    assert built["content"] == [{"type": "text", "text": "Hello, world"}]


async def test_a_client_that_leaves_mid_stream_frees_the_neuron(served, neuron):
    frames = itertools.chain.from_iterable(itertools.repeat((chunk("m", {"content": "x"}), 0.02)))
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with served.stream(message(stream=True), MESSAGES) as reading:
        await reading.until(b"text_delta")
    with trio.fail_after(1):
        await served.until(1, "cortex_client_disconnects_total")
        await served.until(0, "cortex_in_flight")
        while neuron.in_flight:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("version", "fields", "words"),
    [
        ("2026-10-21", {"temperature": 0.5}, "temperature: Extra inputs are not permitted"),
        ("1999-01-01", {}, "anthropic-version: 1999-01-01 is not a version"),
    ],
)
async def test_a_strict_gateway_refuses_what_a_version_does_not_know(
    neuron, version, fields, words
):
    headers = {"anthropic-version": version}
    with trio.fail_after(20):
        async with gateway(neuron, strict_anthropic_version=True) as served:
            for path in (MESSAGES, f"{MESSAGES}/count_tokens"):
                answer = await served.client.post(path, json=message(**fields), headers=headers)
                error = assert_envelope(answer, 400, "invalid_request_error")
                assert error["message"].startswith(words)
            old = {"anthropic-version": "2023-06-01"}
            answer = await served.client.post(MESSAGES, json=message(**fields), headers=old)
            assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_neuron_that_takes_no_images_names_the_clients_own_block(served, neuron, stream):
    path = "messages[3].content[0]"  # of the chat that the neuron got
    told = {"message": f"{path}: this model takes text only", "type": "invalid_request_error"}
    body = {"error": {**told, "param": path, "code": "invalid_value"}}
    neuron.scripts[CHAT] = lambda asked: json_reply(body, 400)
    source = {"type": "base64", "media_type": "image/png", "data": png()}
    content = [{"type": "text", "text": "?"}, {"type": "image", "source": source}]
    asked = message(messages=[{"role": "user", "content": content}], stream=stream)
    headers = {"anthropic-version": "2026-10-21"}
    answer = await served.client.post(MESSAGES, json=asked, headers=headers)
    error = assert_envelope(answer, 400, "invalid_request_error")
    assert error["message"] == "messages.0.content.1: this model takes text only"
    assert answer.headers["anthropic-version"] == "2026-10-21"
    answer = await served.client.post(MESSAGES, json=message(stream=stream))
    error = assert_envelope(answer, 400, "invalid_request_error")
    assert error["message"] == f"{path}: this model takes text only"  # without images it is not one
