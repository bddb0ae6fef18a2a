"""RS: the Responses API, each case by its name in the list of conformance cases."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import openai
import pytest
import trio
import zstandard
from fakes.gateway import CHAT, gateway
from fakes.neuron import FakeNeuron, Reply, chunk, json_reply
from fakes.responses_calls import (
    RESPONSES,
    WEATHER,
    ask,
    post,
    refused,
    says,
    sent,
    stream,
    text_of,
)
from fakes.responses_client import ResponseFailed, accumulate, events_of


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


@pytest.fixture
async def served(neuron: FakeNeuron, lane: dict[str, Any]):
    with trio.fail_after(20):
        async with gateway(neuron, **lane) as running:
            yield running


async def test_rs01_a_text_has_a_response_with_every_key(served):
    body = await post(served)
    assert (body["status"], text_of(body)) == ("completed", "Hello, world")
    openai.types.responses.Response.model_validate(body)


async def test_rs02_easy_messages_and_mixed_roles(served, neuron):
    items = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "c"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d"}]},
        {"role": "user", "content": "e"},
    ]
    await post(served, items)
    assert [message["role"] for message in sent(neuron)["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


async def test_rs03_the_order_of_a_stream(served):
    data = await stream(served)
    assert data.endswith(b"data: [DONE]\n\n")
    assert [event["type"] for event in events_of(data)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert b"\nid:" not in data
    assert accumulate(data)["status"] == "completed"


async def test_rs04_ids_are_stable(served):
    events = events_of(await stream(served))
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    items = {event["item"]["id"] for event in events if "item" in event}
    assert items == {event["item_id"] for event in events if "item_id" in event}
    assert len(items) == 1


async def test_rs05_deltas_say_what_the_end_says(served):
    events = events_of(await stream(served))
    deltas = "".join(event["delta"] for event in events if "delta" in event)
    [done] = [e["text"] for e in events if e["type"] == "response.output_text.done"]
    assert deltas == done == text_of(events[-1]["response"]) == "Hello, world"


async def test_rs09_an_answer_that_is_cut_off_is_incomplete(served, neuron):
    says(neuron, {"content": "Hel"}, finish="length")
    body = await post(served, max_output_tokens=1)
    assert sent(neuron)["max_completion_tokens"] == 1
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][-1]["status"] == "incomplete"
    data = await stream(served, max_output_tokens=1)
    assert events_of(data)[-1]["type"] == "response.incomplete"
    assert accumulate(data)["output"][-1]["status"] == "incomplete"


@pytest.mark.parametrize(
    "frames",
    [
        [b'data: {"error": {"message": "the device is gone"}}\n\n'],
        [b"data: {\n\n"],
        [],
    ],
    ids=["RS10-error", "RS10-garbage", "RS10-hang-up"],
)
async def test_rs10_a_failure_within_the_stream(served, neuron, frames):
    frames = [chunk("m", {"content": "Hel"}), *frames]
    neuron.scripts[CHAT] = lambda asked: Reply(
        frames=frames, content_type="text/event-stream", abort=True
    )
    data = await stream(served)
    with pytest.raises(ResponseFailed) as caught:
        accumulate(data)
    assert caught.value.code == "server_error"
    assert b"[DONE]" not in data
    neuron.scripts.clear()
    assert accumulate(await stream(served))["status"] == "completed"


async def test_rs11_a_prompt_that_is_too_long(served, neuron):
    told = {"message": "9000 tokens", "type": "invalid_request_error"}
    told["code"] = "context_length_exceeded"
    neuron.scripts[CHAT] = lambda asked: json_reply({"error": told}, 400)
    answer = await served.client.post(RESPONSES, json=ask())
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    with pytest.raises(ResponseFailed) as caught:
        accumulate(await stream(served))
    assert caught.value.code == "context_length_exceeded"


async def test_rs12_no_earlier_response_is_known(served):
    """Nothing is stored: one's own id, another's and an invented one look the same."""
    known = (await post(served, store=True))["id"]
    messages = []
    for id_ in (known, "resp_unknown"):
        error = await refused(served, 404, json=ask(previous_response_id=id_))
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"
        messages.append(error["message"].replace(id_, ""))
    assert messages[0] == messages[1]


async def test_rs13_what_is_not_stored_is_not_found(served):
    for store in (False, True, None):
        body = await post(served, store=store)
        assert body["store"] is False
        error = await refused(served, 404, "GET", f"{RESPONSES}/{body['id']}")
        assert error["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "resp_1"),
        ("DELETE", "resp_1"),
        ("POST", "resp_1/cancel"),
        ("GET", "resp_1/input_items"),
        ("POST", "compact"),
    ],
)
async def test_rs14_the_routes_of_what_is_stored(served, method, path):
    error = await refused(served, 404, method, f"{RESPONSES}/{path}")
    assert error["type"] == "invalid_request_error"


async def test_rs15_nothing_runs_in_the_background(served):
    error = await refused(served, 400, json=ask(background=True))
    assert (error["param"], error["code"]) == ("background", "unsupported_parameter")
    await post(served, background=False)


async def test_rs20_a_websocket_is_told_to_come_back_over_http(served):
    """Codex does so after a 426, and after nothing else."""
    headers = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    error = await refused(served, 426, "GET", headers=headers)
    assert "HTTP" in error["message"]
    plain = await refused(served, 405, "GET")
    assert plain["code"] == "method_not_allowed"


def zstd(data: bytes) -> bytes:
    return bytes(zstandard.compress(data))


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("zstd", zstd), ("deflate", zlib.compress)],
    ids=["RS21-gzip", "RS21-zstd", "RS21-deflate"],
)
async def test_rs21_an_encoded_body(served, encoding, encode):
    content = encode(json.dumps(ask()).encode())
    headers = {"content-encoding": encoding}
    answer = await served.client.post(RESPONSES, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    assert text_of(answer.json()) == "Hello, world"


async def test_rs21_a_body_in_an_encoding_nobody_reads(served):
    headers = {"content-encoding": "br"}
    error = await refused(served, 415, content=b"x", headers=headers)
    assert error["code"]
    await refused(served, 400, content=b"x", headers={"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("body", "param"),
    [({"model": "m", "input": []}, "input"), ({"model": "m"}, "input")],
    ids=["RS24-empty", "RS24-missing"],
)
async def test_rs24_input_of_nothing_is_refused(served, body, param):
    error = await refused(served, 400, json=body)
    assert error["param"] == param


async def test_rs24_items_of_unknown_types_are_dropped(served, neuron):
    await post(served, [{"type": "zzz", "content": 5}, {"role": "user", "content": "x"}])
    assert sent(neuron)["messages"] == [{"role": "user", "content": "x"}]


async def test_rs26_every_write_ends_with_a_whole_frame(served, neuron):
    frames: list[bytes | float] = []
    for word in ("Hel", "lo", "!"):
        frames += [chunk("m", {"content": word}), 0.02]
    frames += [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    pieces = []
    async with served.stream(ask(stream=True), RESPONSES) as reading:
        while piece := await reading.some():
            pieces.append(piece)
    assert len(pieces) > 3
    assert all(piece.endswith(b"\n\n") for piece in pieces)


async def test_rs27_instructions_are_those_of_the_request(served, neuron):
    """With nothing stored there is nothing to inherit them from."""
    for text in ("first", "second"):
        body = await post(served, instructions=text)
        assert body["instructions"] == text
        assert sent(neuron)["messages"][0] == {"role": "system", "content": text}
    assert (await post(served))["instructions"] is None


async def test_rs28_input_tokens(served, neuron):
    neuron.scripts["/tokenize"] = lambda asked: json_reply({"count": 42})
    answer = await served.client.post(
        f"{RESPONSES}/input_tokens", json=ask(instructions="x", tools=[WEATHER])
    )
    assert answer.status_code == 200
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": 42}
    asked = neuron.last("/tokenize").json
    assert asked["messages"][0] == {"role": "system", "content": "x"}
    assert asked["tools"][0]["function"]["name"] == "get_weather"


def test_every_case_is_here() -> None:
    """RS01 to RS28, by the names of the tests in the files of this dialect."""
    sources = [path.read_text() for path in Path(__file__).parent.glob("test_responses*.py")]
    found = {int(n) for text in sources for n in re.findall(r"def test_rs(\d\d)_", text)}
    assert found == set(range(1, 29))
