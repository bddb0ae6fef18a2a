from __future__ import annotations

import itertools
from array import array
from typing import Any

import pytest
import trio
from fakes.gateway import CHAT, chat, gateway, payloads, text_of
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply, json_reply

from cortex.config.catalogue import CatalogueEntry
from cortex.wire.embeddings import packed

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ENTRY = CatalogueEntry("m", source="org/m", vram_mb=1000)


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


@pytest.fixture
async def served(neuron):
    with trio.fail_after(20):
        async with gateway(neuron, models=(ENTRY,), aliases={"gpt-4": "m"}) as running:
            yield running


def endless(*before: bytes | float, tick: float = 0.02):
    """A stream that says something every now and then until nobody listens."""
    yield from before
    for _ in itertools.count():
        yield tick
        yield chunk("m", {"content": "x"})


def streams(neuron: FakeNeuron, frames) -> None:
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")


# Answers


async def test_a_chat_completion_is_the_neurons(served):
    answer = await served.client.post(CHAT, json=chat())
    body = answer.json()
    assert (answer.status_code, body["model"]) == (200, "m")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello, world"}
    assert body["usage"]["total_tokens"] == 10
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_body_that_is_refused_is_counted_too(served):
    for path, dialect in ((CHAT, "openai-chat"), (COMPLETIONS, "openai-completions")):
        assert (await served.client.post(path, content=b'{"model":')).status_code == 400
        total = await served.total("cortex_requests_total", code="400", dialect=dialect)
        assert total == 1
    assert await served.total("cortex_request_errors_total", reason="invalid_value") == 2


async def test_an_answer_has_the_name_that_was_asked_for(served):
    assert (await served.client.post(CHAT, json=chat("gpt-4"))).json()["model"] == "gpt-4"
    bodies = payloads(await served.streamed(chat("gpt-4", stream=True)))
    assert {body["model"] for body in bodies[:-1]} == {"gpt-4"}


async def test_a_completion_is_served_on_its_own_route(served, neuron):
    body = {"model": "m", "prompt": "Once"}
    answer = await served.client.post(COMPLETIONS, json=body)
    assert answer.json()["choices"][0]["text"] == "Hello, world"
    assert neuron.counts[COMPLETIONS] == 1
    stream = await served.streamed({**body, "stream": True}, COMPLETIONS)
    assert payloads(stream)[-1] == "[DONE]"


def embeddings(*vectors: Any):
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return lambda asked: json_reply({"object": "list", "data": data, "model": "m", "usage": usage})


@pytest.mark.parametrize("fields", [{}, {"encoding_format": "float"}, {"encoding_format": None}])
async def test_embeddings_travel_packed_and_are_told_as_numbers(served, neuron, fields):
    numbers = [0.5, -0.25, 0.0]
    neuron.scripts[EMBEDDINGS] = embeddings(packed(array("f", numbers)))
    body = {"model": "gpt-4", "input": ["a", "b"], "dimensions": 3, "other": 1, **fields}
    answer = await served.client.post(EMBEDDINGS, json=body)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["embedding"] == numbers
    assert answer.json()["model"] == "gpt-4"
    sent = neuron.last(EMBEDDINGS).json
    assert sent == {**body, "model": "m", "encoding_format": "base64"}
    assert await served.total("cortex_requests_total", dialect="openai-embeddings", code="200") == 1
    assert await served.total("cortex_prompt_tokens_total", model="m") == 5


async def test_packed_embeddings_pass_as_they_are(served, neuron):
    neuron.scripts[EMBEDDINGS] = embeddings("AAAAPw==", [1.0])
    body = {"model": "m", "input": "a", "encoding_format": "base64"}
    data = (await served.client.post(EMBEDDINGS, json=body)).json()["data"]
    assert [entry["embedding"] for entry in data] == ["AAAAPw==", [1.0]]


@pytest.mark.parametrize("bad", ["no base64!", "AAA=", "AADAfw=="])
async def test_a_vector_that_is_none_is_an_error(served, neuron, bad):
    neuron.scripts[EMBEDDINGS] = embeddings(bad)
    answer = await served.client.post(EMBEDDINGS, json={"model": "m", "input": "a"})
    assert answer.status_code == 502


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "m", "input": []}, 400),
        ({"model": "m", "input": ["a"] * 2049}, 400),
        ({"model": "m", "input": "a", "dimensions": -1}, 400),
        ({"model": "m"}, 400),
        ({"model": "no/such", "input": "a"}, 404),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_bad_embedding_requests_never_reach_a_neuron(served, neuron, body, status):
    answer = await served.client.post(EMBEDDINGS, json=body)
    assert answer.status_code == status
    assert neuron.counts[EMBEDDINGS] == 0


async def test_a_stream_is_events_with_an_end(served):
    async with served.stream(chat(stream=True)) as reading:
        assert reading.status == 200
        headers = reading.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-request-id"]
        stream = await reading.rest()
    assert text_of(stream) == "Hello, world"
    assert payloads(stream)[-1] == "[DONE]"
    assert b"usage" not in stream


async def test_a_stream_carries_usage_when_it_is_asked_for(served, neuron):
    body = chat(stream=True, stream_options={"include_usage": True, "other": 1})
    bodies = payloads(await served.streamed(body))
    assert bodies[-2]["usage"]["completion_tokens"] == 3
    assert neuron.last(CHAT).json["stream_options"] == {"include_usage": True, "other": 1}


async def test_usage_is_always_asked_of_the_neuron(served, neuron):
    await served.streamed(chat(stream=True))
    assert neuron.last(CHAT).json["stream_options"]["include_usage"] is True


async def test_fields_nobody_knows_are_passed_on(served, neuron):
    answer = await served.client.post(CHAT, json=chat(new_field={"a": 1}, reasoning_effort="low"))
    assert answer.status_code == 200
    assert neuron.last(CHAT).json["new_field"] == {"a": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        {"response_format": {"type": "json_object"}},
        {"structured": {"regex": "a+"}},
        {"structured": {"choice": ["a", "b"]}},
        {"structured": {"grammar": "start: A"}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ],
)
async def test_wishes_for_structure_reach_the_neuron(served, neuron, fields):
    answer = await served.client.post(CHAT, json=chat(**fields))
    assert answer.status_code == 200
    assert fields.items() <= neuron.last(CHAT).json.items()


async def test_a_raw_completions_structure_reaches_the_neuron(served, neuron):
    body = {"model": "m", "prompt": "Once", "structured": {"regex": "a"}}
    assert (await served.client.post(COMPLETIONS, json=body)).status_code == 200
    assert neuron.last(COMPLETIONS).json["structured"] == {"regex": "a"}


async def test_of_duplicate_keys_the_last_wins_in_what_is_sent(served, neuron):
    body = b'{"model":"forbidden","messages":[],"messages":[{"role":"user","content":"a",'
    body += b'"content":"b"}],"model":"m"}'
    answer = await served.client.post(CHAT, content=body)
    assert answer.status_code == 200
    assert neuron.last(CHAT).body.count(b'"model"') == 1
    assert neuron.last(CHAT).json["messages"] == [{"role": "user", "content": "b"}]


async def test_many_streams_at_a_time_are_not_mixed(neuron):
    def echo(asked):
        name = asked.json["messages"][0]["content"]
        words = [chunk("m", {"content": f"{name}.{n} "}) for n in range(10)]
        frames = [part for word in words for part in (word, 0.0)]
        frames += [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]
        return Reply(frames=frames, content_type="text/event-stream")

    neuron.scripts[CHAT] = echo
    seen: dict[str, str] = {}

    async def one(served, name):
        body = chat(stream=True, messages=[{"role": "user", "content": name}])
        seen[name] = text_of(await served.streamed(body))

    with trio.fail_after(20):
        async with gateway(neuron) as served, trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, served, f"s{number}")
    assert seen == {f"s{i}": "".join(f"s{i}.{n} " for n in range(10)) for i in range(40)}


# Errors


def assert_envelope(answer, status, code):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert {"message", "type", "param", "code"} <= set(error)
    assert len(error["message"].encode()) <= 1000
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    return error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"messages": []}, "model", None),
        (chat(max_tokens="5"), "max_tokens", "invalid_type"),
        (chat(temperature=3), "temperature", None),
        (chat(n=0), "n", "integer_below_min_value"),
        (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", None),
    ],
)
async def test_a_wrong_field_is_400_and_named(served, neuron, body, param, code, stream):
    answer = await served.client.post(CHAT, json={**body, "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert code in (None, error["code"])
    assert neuron.counts[CHAT] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model_is_404_with_near_names(served, stream):
    answer = await served.client.post(CHAT, json=chat("gpt-44", stream=stream))
    error = assert_envelope(answer, 404, "model_not_found")
    assert "gpt-4" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (error_reply(400, "context_length_exceeded"), 400, "context_length_exceeded"),
        (error_reply(400, "template_error"), 400, "template_error"),
        (error_reply(503, "load_failed", retry_after=9), 503, "load_failed"),
        (error_reply(500, "internal_error"), 500, "internal_error"),
    ],
)
async def test_a_neurons_refusal_is_a_status(served, neuron, reply, status, code, stream):
    neuron.scripts[CHAT] = lambda asked: reply
    answer = await served.client.post(CHAT, json=chat(stream=stream))
    assert_envelope(answer, status, code)
    assert answer.headers.get("retry-after") == ("9" if code == "load_failed" else None)


async def test_no_healthy_node_is_503_with_a_hint():
    neuron = FakeNeuron("a")
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,), load_wait_seconds=0.2) as served:
            neuron.kill()
            await served.until(0, "cortex_neuron_up", within=5, node="a")
            answer = await served.client.post(CHAT, json=chat())
            assert_envelope(answer, 503, "service_unavailable")
            assert int(answer.headers["retry-after"]) > 0


async def test_a_load_beyond_the_wait_bound_is_503_and_tells_of_the_load():
    neuron = FakeNeuron("a", load_gate=trio.Event())
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,), load_wait_seconds=0.3) as served:
            answer = await served.client.post(CHAT, json=chat())
            error = assert_envelope(answer, 503, "service_unavailable")
            assert error["loading"]["node"] == "a"
            neuron.load_gate.set()


async def test_a_failed_load_is_503_with_its_cause():
    neuron = FakeNeuron("a", load_reply=error_reply(503, "load_failed", "the disk is gone"))
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,)) as served:
            answer = await served.client.post(CHAT, json=chat())
            assert "the disk is gone" in assert_envelope(answer, 503, "load_failed")["message"]


async def test_a_full_queue_is_429_with_a_hint(neuron):
    neuron.model_loads = [{"id": "m", "in_flight": 0, "queue_depth": 0, "max_in_flight": 1}]
    streams(neuron, endless())
    with trio.fail_after(10):
        async with (
            gateway(neuron, queue_wait_seconds=0.1) as served,
            served.stream(chat(stream=True)) as first,
        ):
            await first.until(b'"x"')
            answer = await served.client.post(CHAT, json=chat())
            assert_envelope(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) > 0


# A stream that breaks


async def test_a_neuron_killed_within_a_stream_gives_an_error_event_and_no_end(served, neuron):
    streams(neuron, endless(chunk("m", {"content": "Hel"})))
    async with served.stream(chat(stream=True)) as reading:
        await reading.until(b"Hel")
        neuron.kill()
        *words, last = payloads(await reading.rest())
    assert last["error"]["code"] == "upstream_error"
    assert {word["choices"][0]["finish_reason"] for word in words} == {None}
    assert b"[DONE]" not in reading.received
    await served.until(1, "cortex_request_errors_total", reason="upstream_error")


async def test_a_slow_load_commits_the_stream_and_fails_in_band():
    neuron = FakeNeuron("a", load_gate=trio.Event())
    neuron.load_reply = error_reply(503, "load_failed", "no such file")
    pace = {"commit_after_seconds": 0.05, "keepalive_seconds": 0.05}
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,), **pace) as served:
            async with served.stream(chat(stream=True)) as reading:
                assert reading.status == 200
                await reading.until(b": loading")
                neuron.load_gate.set()
                (body,) = payloads(await reading.rest())
            assert body["error"]["code"] == "load_failed"


# Clients that leave


async def leaves(served, *, until: bytes | None, count: int = 1) -> None:
    """A client of a stream goes, and within a second nothing is held for it."""
    async with served.stream(chat(stream=True)) as reading:
        if until is not None:
            await reading.until(until)
    with trio.fail_after(1):
        await served.until(0, "cortex_in_flight")
        await served.until(count, "cortex_client_disconnects_total")


async def test_a_client_that_leaves_mid_stream_frees_the_neuron(served, neuron):
    streams(neuron, endless(chunk("m", {"content": "a"})))
    await leaves(served, until=b'"a"')
    with trio.fail_after(1):
        while neuron.in_flight:
            await trio.sleep(0.01)


async def test_a_client_that_leaves_in_prefill_frees_the_neuron(neuron):
    streams(neuron, itertools.chain.from_iterable(itertools.repeat((b": wait\n\n", 0.02))))
    with trio.fail_after(10):
        async with gateway(neuron, keepalive_seconds=0.05) as served:
            await leaves(served, until=b": keep-alive")
            with trio.fail_after(1):
                while neuron.in_flight:
                    await trio.sleep(0.01)


async def test_a_client_that_leaves_while_its_model_loads_leaves_the_load_alone():
    neuron = FakeNeuron("a", load_gate=trio.Event())
    pace = {"commit_after_seconds": 0.05, "keepalive_seconds": 0.05}
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,), **pace) as served:
            await leaves(served, until=b": loading")
            assert neuron.counts[CHAT] == 0
            neuron.load_gate.set()
            await served.until(1, "cortex_model_status", model="m", status="loaded")


async def test_a_client_that_leaves_the_queue_gives_its_place_up(neuron):
    neuron.model_loads = [{"id": "m", "in_flight": 0, "queue_depth": 0, "max_in_flight": 1}]
    streams(neuron, endless())
    pace = {"commit_after_seconds": 0.05, "keepalive_seconds": 0.05}
    with trio.fail_after(10):
        async with gateway(neuron, **pace) as served:
            async with served.stream(chat(stream=True)) as first:
                await first.until(b'"x"')
                async with served.stream(chat(stream=True)) as second:
                    await second.until(b": keep-alive")
                await served.until(1, "cortex_client_disconnects_total")
                await first.some()
            neuron.scripts.clear()
            assert (await served.client.post(CHAT, json=chat())).status_code == 200
            assert neuron.counts[CHAT] == 2


async def test_a_client_that_leaves_before_a_plain_answer_frees_the_neuron(served, neuron):
    streams(neuron, itertools.chain.from_iterable(itertools.repeat((b" ", 0.02))))
    with trio.move_on_after(0.1):
        async with served.stream(chat()):
            pass
    with trio.fail_after(1):
        await served.until(1, "cortex_client_disconnects_total")
        await served.until(0, "cortex_in_flight")
        while neuron.in_flight:
            await trio.sleep(0.01)


async def test_a_client_that_stops_reading_is_given_up_and_blocks_nobody(neuron):
    big = chunk("m", {"content": "x" * 60_000})
    plain = neuron.scripts
    with trio.fail_after(20):
        async with gateway(neuron, stall_seconds=0.3) as served:
            plain[CHAT] = lambda asked: Reply(
                frames=itertools.repeat(big), content_type="text/event-stream"
            )
            async with served.stream(chat(stream=True)) as deaf:
                await deaf.some()
                plain.clear()
                assert text_of(await served.streamed(chat(stream=True))) == "Hello, world"
                await served.until(1, "cortex_client_disconnects_total", within=5)
                await served.until(0, "cortex_in_flight")
                assert (await served.client.post(CHAT, json=chat())).status_code == 200


# Counting


async def test_a_prompt_is_counted_without_a_slot_and_a_load():
    neuron = FakeNeuron("a")
    with trio.fail_after(10):
        async with gateway(neuron, models=(ENTRY,)) as served:
            asked = {**chat(), "source": "/etc", "quant": "q4_0", "return_tokens": True}
            answer = await served.client.post("/tokenize", json=asked)
            assert (answer.status_code, list(answer.json())) == (200, ["count"])
            assert answer.json()["count"] > 0
            sent = neuron.last("/tokenize").json
            # Where the files are is the catalogue's to say.
            assert sent == {"model": "m", "messages": chat()["messages"], "source": "org/m"}
            plain = await served.client.post("/tokenize", json={"model": "m", "prompt": "Hi"})
            assert plain.status_code == 200
            assert neuron.last("/tokenize").json["prompt"] == "Hi"
            assert (neuron.counts[CHAT], neuron.counts["/models/load"]) == (0, 0)


@pytest.mark.parametrize(
    ("body", "param"),
    [({"model": "m"}, "messages"), ({**chat(), "prompt": "x"}, "messages"), ({}, "model")],
)
async def test_what_cannot_be_counted_is_400(served, neuron, body, param):
    answer = await served.client.post("/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert neuron.counts["/tokenize"] == 0
