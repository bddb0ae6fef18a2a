"""RS and CE: what the clients of the Responses API send, and what they need back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import trio
from fakes.gateway import CHAT, gateway
from fakes.neuron import FakeNeuron, Reply, chunk, json_reply
from fakes.responses_calls import (
    IMAGE,
    RESPONSES,
    WEATHER,
    ask,
    call,
    refused,
    says,
    sent,
    stream,
)
from fakes.responses_client import ResponseFailed, accumulate, check_response, events_of

from cortex.wire.sse import FrameReader

GOLDEN = Path(__file__).parents[1] / "golden" / "responses"


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


@pytest.mark.parametrize("turn", ["codex_first_turn", "codex_tool_turn"])
async def test_rs22_a_turn_of_codex(neuron, lane, turn):
    neuron.hold("gpt-5-codex")
    upstream = (GOLDEN / turn / "upstream.sse").read_bytes()
    frames = [frame.raw for frame in FrameReader().feed(upstream)]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    request = (GOLDEN / turn / "request.json").read_bytes()
    with trio.fail_after(20):
        async with gateway(neuron, **lane) as served:
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


async def test_ce09_ce10_a_session_of_codex(neuron, lane):
    """What the first turn answered is sent back with the second; the reasoning comes with it."""
    neuron.hold("gpt-5-codex")
    first, second = (
        [frame.raw for frame in FrameReader().feed((GOLDEN / turn / "upstream.sse").read_bytes())]
        for turn in ("codex_first_turn", "codex_tool_turn")
    )
    answers = iter([first, second])
    neuron.scripts[CHAT] = lambda asked: Reply(
        frames=next(answers), content_type="text/event-stream"
    )
    body = json.loads((GOLDEN / "codex_first_turn" / "request.json").read_text())
    with trio.fail_after(20):
        async with gateway(neuron, **lane) as served:
            events = events_of(await served.streamed(body, RESPONSES))
            body["input"] += codex_history(events)
            output = {"type": "input_text", "text": "1 failed"}
            call_id = body["input"][-1]["call_id"]
            body["input"].append(
                {"type": "function_call_output", "call_id": call_id, "output": [output]}
            )
            response = accumulate(await served.streamed(body, RESPONSES))
    assert response["output"][0]["input"] == "*** Begin\n-two\n+2\n*** End"
    assistant, result = sent(neuron)["messages"][-2:]
    assert assistant["reasoning_content"] == "The tests have to be run first."
    assert assistant["content"].strip() == "I will run the tests."
    assert assistant["tool_calls"][0]["function"]["name"] == "shell"
    assert result == {"role": "tool", "tool_call_id": call_id, "content": "1 failed"}


def codex_history(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as Codex keeps them: from output_item.done, without raw reasoning and ids."""
    kept = []
    for event in events:
        if event["type"] == "response.output_item.done":
            item = {key: value for key, value in event["item"].items() if key != "id"}
            if item["type"] == "reasoning":
                del item["content"]
            kept.append(item)
    return kept


async def test_ce11_codex_learns_that_it_has_to_compact(served, neuron):
    told = {"message": "9000 tokens", "code": "context_length_exceeded"}
    neuron.scripts[CHAT] = lambda asked: json_reply({"error": told}, 400)
    data = await stream(served)
    last = events_of(data)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "context_length_exceeded"


async def test_ce11_codex_learns_how_long_to_wait(served, neuron):
    told = {"message": "the queue is full", "code": "overloaded", "type": "rate_limit_error"}
    failure = b"data: " + json.dumps({"error": told}).encode() + b"\n\n"
    neuron.scripts[CHAT] = lambda asked: Reply(
        frames=[chunk("m", {"content": "x"}), failure], content_type="text/event-stream"
    )
    with pytest.raises(ResponseFailed, match=r"try again in \d+(\.\d+)?s") as caught:
        accumulate(await stream(served))
    assert caught.value.code == "rate_limit_exceeded"


SYSTEM = {"type": "message", "role": "system", "content": "Speak like a pirate."}
RUNNER: dict[str, dict[str, Any]] = {
    "basic-response": {
        "input": [{"type": "message", "role": "user", "content": "Say hello in 3 words."}]
    },
    "streaming-response": {
        "input": [{"type": "message", "role": "user", "content": "Count from 1 to 5."}],
        "stream": True,
    },
    "system-prompt": {"input": [SYSTEM, {"type": "message", "role": "user", "content": "Hi."}]},
    "tool-calling": {
        "input": [{"type": "message", "role": "user", "content": "Weather in Paris?"}],
        "tools": [WEATHER],
    },
    "tool-calling-streaming": {
        "input": [{"type": "message", "role": "user", "content": "Weather in Paris?"}],
        "tools": [WEATHER],
        "stream": True,
    },
    "image-input": {
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What is it?"}, IMAGE],
            }
        ]
    },
    "multi-turn": {
        "input": [
            {"type": "message", "role": "user", "content": "I am Alice."},
            {"type": "message", "role": "assistant", "content": "Hello, Alice!"},
            {"type": "message", "role": "user", "content": "Who am I?"},
        ]
    },
}


@pytest.mark.parametrize("case", RUNNER, ids=lambda case: f"CE23-{case}")
async def test_ce23_what_the_open_responses_runner_asks(served, neuron, case):
    """Its seven requests, by its rules: the schema, the status, and a call where one is due."""
    body = {"model": "m", **RUNNER[case]}
    calls = case.startswith("tool-calling")
    if calls:
        says(neuron, call(0, "call_1", "get_weather", '{"city":"Paris"}'), finish="tool_calls")
    if body.get("stream"):
        response = accumulate(await served.streamed(body, RESPONSES))
    else:
        response = (await served.client.post(RESPONSES, json=body)).json()
    check_response(response)
    assert response["status"] == "completed"
    assert [item["type"] for item in response["output"]] == [
        "function_call" if calls else "message"
    ]
