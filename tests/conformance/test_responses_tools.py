"""RS: tools, their choice and their history; structured output with the real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from fakes.gateway import gateway
from fakes.neuron import FakeNeuron
from fakes.responses_calls import (
    IMAGE,
    PATCH,
    RESPONSES,
    WEATHER,
    ask,
    call,
    more,
    post,
    refused,
    says,
    sent,
    stream,
    text_of,
)
from fakes.responses_client import accumulate, check_response, events_of
from fakes.stack import DEMO, stack

from cortex.translate.sealed_reasoning import seal


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
