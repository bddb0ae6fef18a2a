"""CT: tools. What the model says is scripted where the case is about what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conformance.checks import CHAT, TOOL, Server, call, call_deltas, user
from fakes.chunk_client import follow

HARD = {"city": 'Zürich "quoted"\n</tool_call> \U0001f600', "n": [1, {"a": None}]}
FORECAST = {"type": "function", "function": {"name": "forecast"}}
ASK = [user("What is the weather in Paris?")]


def calls_of(body: Any) -> list[tuple[str, Any]]:
    calls = body["choices"][0]["message"]["tool_calls"]
    assert all(type(each["function"]["arguments"]) is str for each in calls)
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**TOOL["function"], **fields}}


def test_ct01_a_required_call_is_one(real: Server) -> None:
    body = real.chat(messages=ASK, tools=[TOOL], tool_choice="required")
    choice = body["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    ((name, arguments),) = calls_of(body)
    assert name == "get_weather"
    assert type(arguments["city"]) is str


def test_ct02_its_stream_has_the_head_first(real: Server) -> None:
    body = real.body(messages=ASK, tools=[TOOL], tool_choice="required")
    (choice,) = follow(real.gateway.stream(CHAT, body)).choices
    assert choice.finish_reason == "tool_calls"
    (made,) = choice.calls
    assert made["name"] == "get_weather"
    assert type(json.loads(made["arguments"])["city"]) is str


def test_ct03_two_calls_are_apart(scripted: Server) -> None:
    deltas = call_deltas("f", '{"a": 1}') + call_deltas("g", '{"b": 2}', 1)
    scripted.streams(*deltas, finish="tool_calls")
    (choice,) = follow(scripted.gateway.stream(CHAT, scripted.body(tools=[TOOL]))).choices
    assert [(c["id"], c["name"], c["arguments"]) for c in choice.calls] == [
        ("call_0", "f", '{"a": 1}'),
        ("call_1", "g", '{"b": 2}'),
    ]


def test_ct04_one_call_at_most_where_asked(real: Server) -> None:
    body = real.chat(messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert len(calls_of(body)) == 1


def test_ct05_a_named_tool_is_called(real: Server) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = real.chat(messages=ASK, tools=[FORECAST, TOOL], tool_choice=choice)
    assert [name for name, _ in calls_of(body)] == ["get_weather"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"


def test_ct06_none_is_text_without_markup(real: Server) -> None:
    body = real.chat(messages=ASK, tools=[TOOL], tool_choice="none")
    message = body["choices"][0]["message"]
    assert "tool_calls" not in message
    assert "tool_call" not in message["content"]


def test_ct07_only_allowed_tools_are_called(real: Server) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    body = real.chat(messages=ASK, tools=[FORECAST, TOOL], tool_choice=choice)
    assert {name for name, _ in calls_of(body)} == {"get_weather"}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"parameters": {"type": "object", "properties": {}, "additionalProperties": False}}],
    ids=["CT08-absent", "CT08-none"],
)
def test_ct08_a_tool_without_parameters(real: Server, parameters: Any) -> None:
    tool = {"type": "function", "function": {"name": "now", **parameters}}
    choice = {"type": "function", "function": {"name": "now"}}
    body = real.chat(messages=ASK, tools=[tool], tool_choice=choice, max_tokens=60)
    assert calls_of(body) == [("now", {})]


def test_ct09_arguments_pass_byte_for_byte(scripted: Server) -> None:
    text = json.dumps(HARD, ensure_ascii=False)
    scripted.answers({"tool_calls": [call("get_weather", text)]}, "tool_calls")
    body = scripted.chat(tools=[TOOL])
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == text
    scripted.streams(*call_deltas("get_weather", text, size=1), finish="tool_calls")
    (choice,) = follow(scripted.gateway.stream(CHAT, scripted.body(tools=[TOOL]))).choices
    assert choice.calls[0]["arguments"] == text


def test_ct10_ct11_reasoning_text_and_call_keep_their_order(scripted: Server) -> None:
    deltas = [{"reasoning_content": "hm"}, {"content": "I look."}, *call_deltas("f", "{}")]
    scripted.streams(*deltas, finish="tool_calls")
    (choice,) = follow(scripted.gateway.stream(CHAT, scripted.body(tools=[TOOL]))).choices
    assert (choice.reasoning, choice.content) == ("hm", "I look.")
    assert choice.calls[0]["arguments"] == "{}"


@pytest.mark.parametrize(
    "result",
    ["sunny", "", [{"type": "text", "text": "sun"}, {"type": "text", "text": "ny"}]],
    ids=["CT12-text", "CT12-empty", "CT12-parts"],
)
def test_ct12_a_result_is_answered(real: Server, result: Any) -> None:
    made = real.chat(messages=ASK, tools=[TOOL], tool_choice="required")["choices"][0]["message"]
    answer = {"role": "tool", "tool_call_id": made["tool_calls"][0]["id"], "content": result}
    body = real.chat(messages=[*ASK, made, answer], tools=[TOOL], max_tokens=8)
    assert body["choices"]


def test_ct13_many_tools_and_a_huge_schema(scripted: Server) -> None:
    huge = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(6000)}}
    tools = [function(name=f"tool-{n}") for n in range(127)]
    tools.append(function(name="huge", parameters=huge))
    assert scripted.chat(tools=tools)["choices"]
    assert scripted.sent()["tools"] == tools


def test_ct15_tools_of_unknown_types_are_skipped(real: Server) -> None:
    tools = [{"type": "web_search"}, {"type": "mcp", "server_url": "http://x"}, TOOL]
    body = real.chat(messages=ASK, tools=tools, tool_choice="required")
    assert [name for name, _ in calls_of(body)] == ["get_weather"]


def test_ct16_custom_tools_are_refused_by_name(scripted: Server) -> None:
    tool = {"type": "custom", "custom": {"name": "shell"}}
    error = scripted.refused(CHAT, scripted.body(tools=[tool]))
    assert (error["param"], error["code"]) == ("tools[0].type", "unsupported_value")


def test_ct17_the_legacy_fields_are_answered_in_kind(real: Server) -> None:
    body = real.chat(
        messages=ASK, functions=[TOOL["function"]], function_call={"name": "get_weather"}
    )
    choice = body["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "get_weather"
    assert "tool_calls" not in choice["message"]


def test_ct19_a_call_cut_off_is_no_finished_call(real: Server) -> None:
    body = real.chat(messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=8)
    assert body["choices"][0]["finish_reason"] == "length"


def test_ct20_results_out_of_order_are_taken(real: Server) -> None:
    calls = [call("get_weather", '{"city": "x"}', n) for n in range(20)]
    results = [
        {"role": "tool", "tool_call_id": f"call_{n}", "content": str(n)}
        for n in reversed(range(20))
    ]
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    assert real.chat(messages=messages, tools=[TOOL], max_tokens=2)["choices"]


def test_ct21_the_sdks_helper_puts_the_calls_together(scripted: Server) -> None:
    deltas = call_deltas("f", '{"a": 1}') + call_deltas("g", '{"b": 2}', 1)
    scripted.streams(*deltas, finish="tool_calls")
    with (
        openai.OpenAI(base_url=f"{scripted.gateway.url}/v1", api_key="none") as sdk,
        sdk.chat.completions.stream(**scripted.body(tools=[TOOL])) as stream,
    ):
        message = stream.get_final_completion().choices[0].message
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("call_0", "f", '{"a": 1}'),
        ("call_1", "g", '{"b": 2}'),
    ]
