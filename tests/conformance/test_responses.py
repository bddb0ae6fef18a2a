"""RS: the Responses API, each case by its name in the list of conformance cases.

Over a scripted neuron, but for RS18, which needs a model.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import trio
from fakes.gateway import CHAT, RunningGateway, gateway
from fakes.neuron import FakeNeuron, Reply, chunk, json_reply
from fakes.responses_client import ResponseFailed, accumulate, check_response, events_of
from fakes.stack import DEMO, stack

from cortex.translate.sealed_reasoning import seal
from cortex.wire.sse import FrameReader

RESPONSES = "/v1/responses"
GOLDEN = Path(__file__).parents[1] / "golden" / "responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files."}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()
IMAGE = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


@pytest.fixture
async def served(neuron: FakeNeuron):
    with trio.fail_after(20):
        async with gateway(neuron) as running:
            yield running


def ask(given: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": given, **fields}


async def post(served: RunningGateway, given: Any = "hi", **fields: Any) -> Any:
    """The whole response to *given*, held to the schema."""
    answer = await served.client.post(RESPONSES, json=ask(given, **fields))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    check_response(body)
    return body


async def stream(served: RunningGateway, given: Any = "hi", **fields: Any) -> bytes:
    return await served.streamed(ask(given, stream=True, **fields), RESPONSES)


async def refused(
    served: RunningGateway, status: int, method: str = "POST", path: str = RESPONSES, **sent: Any
) -> dict[str, Any]:
    """The error of a request that must be refused; a good one is answered after it."""
    answer = await served.client.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    await post(served)
    return error


def says(neuron: FakeNeuron, *deltas: dict[str, Any], finish: str = "stop") -> None:
    """The neuron answers with *deltas*, in a stream or whole."""
    frames = [chunk("m", delta) for delta in deltas]
    frames += [chunk("m", {}, finish_reason=finish), chunk("m", None, usage=USAGE)]
    frames.append(b"data: [DONE]\n\n")
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas:
        message["content"] += delta.get("content", "")
        message.setdefault("tool_calls", []).extend(delta.get("tool_calls", ()))
    choice = {"index": 0, "message": message, "finish_reason": finish}
    whole = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}

    def answer(asked: Any) -> Reply:
        if asked.json.get("stream"):
            return Reply(frames=frames, content_type="text/event-stream")
        return json_reply(whole)

    neuron.scripts[CHAT] = answer


def call(index: int, id_: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    told = {"index": index, "id": id_, "type": "function", "function": function}
    return {"tool_calls": [told]}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def text_of(response: Any) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def sent(neuron: FakeNeuron) -> Any:
    return neuron.last(CHAT).json


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


async def test_rs06_a_function_call_in_a_stream(served, neuron):
    says(
        neuron,
        call(0, "call_abc", "get_weather", ""),
        more(0, '{"city":'),
        more(0, '"Paris"}'),
        finish="tool_calls",
    )
    data = await stream(served, tools=[WEATHER])
    [item] = accumulate(data)["output"]
    assert (item["type"], item["call_id"]) == ("function_call", "call_abc")
    assert item["id"].startswith("fc_")
    assert json.loads(item["arguments"]) == {"city": "Paris"}
    deltas = [e for e in events_of(data) if e["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) == 2
    whole = (await post(served, tools=[WEATHER]))["output"]
    assert [each["type"] for each in whole] == ["function_call"]


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ("sunny", "sunny"),
        ([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "a\nb"),
        (
            [{"type": "input_text", "text": "see"}, IMAGE],
            [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": IMAGE["image_url"]}},
            ],
        ),
    ],
    ids=["RS07-text", "RS07-parts", "RS07-image"],
)
async def test_rs07_a_calls_output(served, neuron, output, content):
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": output},
    ]
    await post(served, items, tools=[WEATHER])
    assert sent(neuron)["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "c1",
        "content": content,
    }


async def test_rs08_parallel_calls_are_told_one_after_the_other(served, neuron):
    says(
        neuron,
        call(0, "call_a", "get_weather", '{"city":'),
        call(1, "call_b", "get_weather", '{"city":'),
        more(0, '"Paris"}'),
        more(1, '"Rome"}'),
        finish="tool_calls",
    )
    output = accumulate(await stream(served, tools=[WEATHER]))["output"]
    assert [item["call_id"] for item in output] == ["call_a", "call_b"]
    assert [json.loads(item["arguments"])["city"] for item in output] == ["Paris", "Rome"]


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


async def test_rs16_another_vendors_reasoning_is_ignored(served, neuron):
    foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABo"}
    own = {**foreign, "encrypted_content": seal("I see.")}
    await post(
        served, [{"role": "user", "content": "a"}, foreign, {"role": "assistant", "content": "b"}]
    )
    assert "reasoning_content" not in sent(neuron)["messages"][1]
    await post(
        served, [{"role": "user", "content": "a"}, own, {"role": "assistant", "content": "b"}]
    )
    assert sent(neuron)["messages"][1]["reasoning_content"] == "I see."


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search", "filters": {"allowed_domains": ["x"]}},
        {"type": "local_shell"},
        {"type": "namespace", "name": "n", "description": "d", "tools": [WEATHER]},
        {"type": "tool_search", "execution": "client"},
        {"type": "mcp", "server_label": "x", "server_url": "https://x"},
        {"type": "computer_use_preview", "display_width": 5},
        {"type": "invented_yesterday", "name": {"a": 1}},
    ],
    ids=lambda tool: f"RS17-{tool['type']}",
)
async def test_rs17_tools_nobody_serves_are_left_out(served, neuron, tool):
    body = await post(served, tools=[tool, WEATHER])
    assert [each["function"]["name"] for each in sent(neuron)["tools"]] == ["get_weather"]
    assert [each["name"] for each in body["tools"]] == ["get_weather"]
    await post(served, tools=[tool])
    assert "tools" not in sent(neuron)


@pytest.mark.slow
async def test_rs18_a_schema_is_kept_to(tmp_path):
    schema = {
        "type": "object",
        "properties": {"roles": {"type": "array", "items": {"enum": ["gateway", "neuron"]}}},
        "required": ["roles"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "roles", "schema": schema, "strict": True}
    body = {
        "model": DEMO,
        "input": "Which roles does cortex have?",
        "text": {"format": form},
        "temperature": 0,
        "max_output_tokens": 200,
    }
    with trio.fail_after(120):
        async with stack(tmp_path) as it:
            answer = await it.client.post(RESPONSES, json=body)
            whole = answer.json()
            check_response(whole)
            streamed = await it.client.post(RESPONSES, json={**body, "stream": True})
            counted = await it.client.post(f"{RESPONSES}/input_tokens", json=body)
    assert whole["status"] == "completed"
    assert set(json.loads(text_of(whole))["roles"]) <= {"gateway", "neuron"}
    assert text_of(accumulate(streamed.content)) == text_of(whole)
    assert counted.json()["input_tokens"] == whole["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("choice", "upstream"),
    [
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        (
            {"type": "function", "name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
        (
            {"type": "custom", "name": "apply_patch"},
            {"type": "function", "function": {"name": "apply_patch"}},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}, {"type": "web_search"}],
            },
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
        ),
        ({"type": "web_search_preview"}, None),
    ],
    ids=[f"RS19-{n}" for n in ("none", "auto", "required", "function", "custom", "allowed", "web")],
)
async def test_rs19_a_choice_of_tools_reaches_the_neuron(served, neuron, choice, upstream):
    await post(served, tools=[WEATHER, PATCH], tool_choice=choice)
    assert sent(neuron).get("tool_choice") == upstream


async def test_rs19_a_choice_of_nothing_is_refused(served):
    choice = {"type": "function", "name": "nobody"}
    error = await refused(served, 400, json=ask(tools=[WEATHER], tool_choice=choice))
    assert error["param"] == "tool_choice.name"


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
async def test_rs21_an_encoded_body(served, encoding):
    """Decoded, or refused by a status and a code that say so."""
    body = json.dumps(ask()).encode()
    content = gzip.compress(body) if encoding == "gzip" else body
    answer = await served.client.post(
        RESPONSES, content=content, headers={"content-encoding": encoding}
    )
    if encoding == "gzip" and answer.status_code == 200:
        assert text_of(answer.json()) == "Hello, world"
    else:
        assert answer.status_code in (400, 415)
        assert answer.json()["error"]["code"]
    await post(served)


@pytest.mark.parametrize("turn", ["codex_first_turn", "codex_tool_turn"])
async def test_rs22_a_turn_of_codex(neuron, turn):
    neuron.hold("gpt-5-codex")
    upstream = (GOLDEN / turn / "upstream.sse").read_bytes()
    frames = [frame.raw for frame in FrameReader().feed(upstream)]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    request = (GOLDEN / turn / "request.json").read_bytes()
    with trio.fail_after(20):
        async with gateway(neuron) as served:
            response = accumulate(await served.streamed(request, RESPONSES))
    recorded = json.loads((GOLDEN / turn / "response.json").read_text())
    assert response["status"] == "completed"
    assert [item["type"] for item in response["output"]] == [
        item["type"] for item in recorded["output"]
    ]


async def test_rs23_references_to_items_are_cleanly_refused(served):
    """The AI SDK sends them unless told ``store: false``; then it sends the items."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "item_reference", "id": "msg_1"},
        {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
    ]
    error = await refused(served, 400, json=ask(items))
    assert (error["param"], error["code"]) == ("input[1]", "item_not_found")
    assert "store: false" in error["message"]


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


class Roles(pydantic.BaseModel):
    roles: list[str]


def use_the_sdk(url: str) -> tuple[Any, Any, Any, Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.responses.create(model="m", input="hi")
        with client.responses.stream(model="m", input="hi", text_format=Roles) as live:
            kinds = {event.type for event in live}
            final = live.get_final_response()
        parsed = client.responses.parse(model="m", input="hi", text_format=Roles)
    return whole, kinds, final, parsed


async def test_rs25_openais_sdk_takes_it_all(served, neuron):
    says(neuron, {"content": '{"roles":'}, {"content": '["gateway"]}'})
    whole, kinds, final, parsed = await trio.to_thread.run_sync(
        partial(use_the_sdk, served.api), abandon_on_cancel=True
    )
    assert whole.output_text == final.output_text == '{"roles":["gateway"]}'
    assert {"response.output_text.delta", "response.completed"} <= kinds
    assert final.output_parsed == parsed.output_parsed == Roles(roles=["gateway"])


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
