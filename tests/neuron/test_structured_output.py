"""Structured output and forced calls with the demonstration model, over HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fakes.demo_neuron import QUESTION, THINKING, WEATHER, DemoNeuron, user
from fakes.served_neuron import ids

CHAT = "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "role": {"enum": ["admin", "user", "guest"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
        "nick": {"type": ["string", "null"], "maxLength": 4},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
HOT = {"temperature": 2.0, "max_tokens": 400}


def schema(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "out", "schema": of, **more}}


def check_person(value: Any) -> None:
    assert list(value) == [key for key in PERSON["properties"] if key in value]
    assert {"name", "age", "role", "tags"} <= value.keys() <= PERSON["properties"].keys()
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 130
    assert value["role"] in ("admin", "user", "guest")
    assert len(value["tags"]) <= 2
    assert all(isinstance(tag, str) and len(tag) <= 6 for tag in value["tags"])
    assert value.get("nick") is None or len(value["nick"]) <= 4


def streamed(chunks: list[Any]) -> tuple[dict[str, str], str | None]:
    """What the deltas of the first choice add up to, and why they ended."""
    assert chunks[-1] == "[DONE]"
    found: dict[str, str] = {}
    finish = None
    for chunk in chunks[:-1]:
        for choice in chunk.get("choices", []):
            finish = choice["finish_reason"] or finish
            for key in ("content", "reasoning_content"):
                found[key] = found.get(key, "") + (choice["delta"].get(key) or "")
            for call in choice["delta"].get("tool_calls") or []:
                function = call["function"]
                found["name"] = found.get("name", "") + (function.get("name") or "")
                found["arguments"] = found.get("arguments", "") + function.get("arguments", "")
    return found, finish


@pytest.mark.parametrize("strict", [{}, {"strict": True}, {"strict": False}])
def test_a_schema_holds_at_temperature_2_strict_or_not(
    demo: DemoNeuron, strict: dict[str, bool]
) -> None:
    body = demo.chat(**HOT, seed=3, n=4, response_format=schema(PERSON, **strict))
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        check_person(json.loads(choice["message"]["content"]))


def test_a_streamed_schema_is_the_same_as_a_whole_one(demo: DemoNeuron) -> None:
    asked = {**HOT, "seed": 7, "response_format": schema(PERSON)}
    whole = demo.chat(**asked)["choices"][0]["message"]["content"]
    found, finish = streamed(demo.stream(messages=user(QUESTION), **asked))
    check_person(json.loads(whole))
    assert (found["content"], finish) == (whole, "stop")


def test_a_json_object_is_any_object(demo: DemoNeuron) -> None:
    brief = {str(ids(closer)[0]): 8 for closer in '"}]'}  # its strings would be long
    asked = {"temperature": 1.5, "max_tokens": 200, "response_format": {"type": "json_object"}}
    body = demo.chat(**asked, seed=5, n=8, logit_bias=brief)
    found = []
    for choice in body["choices"]:
        if choice["finish_reason"] == "stop":
            found.append(json.loads(choice["message"]["content"]))
        else:
            assert choice["message"]["content"].startswith("{")
    assert len(found) > 4
    assert all(isinstance(value, dict) for value in found)
    assert any(found)


def test_a_recursive_schema_is_held_to(demo: DemoNeuron) -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer", "minimum": 0, "maximum": 9},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                },
                "required": ["v", "kids"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
    body = demo.chat(**HOT, seed=1, response_format=schema(tree))
    node = json.loads(body["choices"][0]["message"]["content"])
    while True:
        assert list(node) == ["v", "kids"]
        assert 0 <= node["v"] <= 9
        if not node["kids"]:
            break
        (node,) = node["kids"]


def test_truncation_says_so_and_a_stop_string_still_stops(demo: DemoNeuron) -> None:
    cut = demo.chat(temperature=2.0, seed=1, max_tokens=5, response_format=schema(PERSON))
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["choices"][0]["message"]["content"].startswith("{")
    stopped = demo.chat(**HOT, seed=1, stop='"age"', response_format=schema(PERSON))
    assert stopped["choices"][0]["finish_reason"] == "stop"
    text = stopped["choices"][0]["message"]["content"]
    assert '"name"' in text
    assert "age" not in text


def test_a_regex_a_choice_and_a_lark_grammar_are_held_to(demo: DemoNeuron) -> None:
    pattern = r"[a-f]{3}-\d{2,4}é?"
    date = 'start: YEAR "-" MONTH\nYEAR: /[12][0-9]{3}/\nMONTH: "0" /[1-9]/ | "1" /[0-2]/'
    for seed in range(5):
        asked = {**HOT, "seed": seed}
        text = self_text(demo, **asked, structured={"regex": pattern})
        assert re.fullmatch(pattern, text)
        choices = ["yes", "no", "perhaps not", 'a "quoted" one\n']
        assert self_text(demo, **asked, structured={"choice": choices}) in choices
        dated = self_text(demo, **asked, structured={"grammar": date})
        assert re.fullmatch(r"[12]\d{3}-(0[1-9]|1[0-2])", dated)


def self_text(demo: DemoNeuron, **fields: Any) -> str:
    choice = demo.chat(**fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"]
    return text


def test_a_raw_completion_can_be_structured_too(demo: DemoNeuron) -> None:
    asked = {"max_tokens": 30, "temperature": 2.0, "seed": 4, "structured": {"regex": " ?[0-9]{4}"}}
    choice = demo.complete("The year", **asked)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(" ?[0-9]{4}", choice["text"])
    chunks = demo.stream("/v1/completions", prompt="The year", **asked)
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1] if c["choices"]) == choice["text"]


def test_logprobs_are_those_of_the_model_without_the_grammar(demo: DemoNeuron) -> None:
    free = demo.chat(temperature=0, max_tokens=1, logprobs=True, top_logprobs=20)
    held = demo.chat(temperature=0, logprobs=True, top_logprobs=20, structured={"choice": ["zzz"]})
    first = held["choices"][0]["logprobs"]["content"][0]
    assert held["choices"][0]["message"]["content"] == "zzz"
    assert first["token"] != free["choices"][0]["logprobs"]["content"][0]["token"]
    tops = [c["choices"][0]["logprobs"]["content"][0]["top_logprobs"] for c in (free, held)]
    assert tops[0] == tops[1]
    assert first["logprob"] < tops[0][-1]["logprob"]


def test_a_schema_holds_after_the_thinking_and_not_within(demo: DemoNeuron) -> None:
    asked = {
        "messages": user("What is a neuron?"),
        "temperature": 0,
        "chat_template_kwargs": THINKING,
        "response_format": schema(PERSON),
    }
    message = demo.ask(CHAT, asked).json()["choices"][0]["message"]
    assert message["reasoning_content"].strip()
    check_person(json.loads(message["content"]))
    found, finish = streamed(demo.stream(**asked))
    assert finish == "stop"
    assert found["reasoning_content"] == message["reasoning_content"]
    assert found["content"] == message["content"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call_is_a_call(demo: DemoNeuron, choice: Any, seed: int) -> None:
    other = {"type": "function", "function": {"name": "now"}}
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    }
    town = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    asked = {
        **HOT,
        "seed": seed,
        "tools": [town, other],
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }
    body = demo.chat("Hello!", **asked)
    (found,) = body["choices"]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    if isinstance(choice, dict):
        assert name == "get_weather"
    if name == "get_weather":
        assert list(arguments) == ["city"]
        assert len(arguments["city"]) <= 8
    else:
        assert (name, arguments) == ("now", {})
    deltas, finish = streamed(demo.stream(messages=user("Hello!"), **asked))
    assert finish == "tool_calls"
    assert deltas["name"] == name
    assert deltas["arguments"] == call["function"]["arguments"]


def test_parallel_calls_may_follow_each_other(demo: DemoNeuron) -> None:
    now = {"type": "function", "function": {"name": "now"}}
    body = demo.chat(
        "Hello!",
        temperature=0,
        max_tokens=120,
        tools=[now],
        tool_choice="required",
        logit_bias={"2553": -100, "2552": -100},  # its ends: it would rather go on
    )
    calls = body["choices"][0]["message"]["tool_calls"]
    assert len(calls) > 1
    assert {call["function"]["name"] for call in calls} == {"now"}
    assert len({call["id"] for call in calls}) == len(calls)


NOW = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize("name", ["qwen3_coder", "llama3_json", "pythonic", "mistral_v11"])
def test_calls_can_be_forced_in_every_format(demo: DemoNeuron, name: str) -> None:
    """Of a model that was never trained in it, and would not find an end of its own."""
    city = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}}
    where = {"name": "get_weather", "parameters": {**city, "required": ["city"]}}
    load = {"model_id": f"demo/{name}", "source": "demo", "tool_format": name}
    assert demo.client.post("/models/load", json=load).json()["model"]["tool_format"] == name
    try:
        tools = [{"type": "function", "function": where}, NOW]
        asked: dict[str, Any] = {"model": load["model_id"], "temperature": 0}
        asked |= {"max_tokens": 200, "parallel_tool_calls": False}
        choice = {"type": "function", "function": {"name": "get_weather"}}
        body = demo.chat("Weather in Paris?", **asked, tools=tools, tool_choice=choice)
        (answered,) = body["choices"]
        assert answered["finish_reason"] == "tool_calls"
        (call,) = answered["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
        chunks = demo.stream(**asked, tools=[NOW], tool_choice="required")[:-1]
        deltas = [c["choices"][0]["delta"] for c in chunks]
        parts = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        assert parts[0]["function"]["name"] == "now"
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    finally:
        demo.client.post("/models/unload", json={"model_id": load["model_id"]})


def test_of_allowed_tools_one_can_be_required(demo: DemoNeuron) -> None:
    allowed = {"mode": "required", "tools": [NOW]}
    body = demo.chat(
        "What is the weather in Paris?",
        temperature=0,
        max_tokens=100,
        parallel_tool_calls=False,
        tools=[WEATHER, NOW],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}


def test_a_legacy_function_can_be_named(demo: DemoNeuron) -> None:
    body = demo.chat(
        "Hello!",
        temperature=0,
        functions=[WEATHER["function"], NOW["function"]],
        function_call={"name": "now"},
    )
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "now", "arguments": "{}"}


def test_a_strict_tool_is_held_to_its_schema_where_the_model_calls_it(demo: DemoNeuron) -> None:
    city = {"type": "string", "enum": ["Quito", "Lima"]}
    strict = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": city},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    body = demo.chat("What is the weather in Paris?", temperature=0, tools=[strict])
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Quito", "Lima")
    said = demo.chat("What is cortex?", temperature=0, tools=[strict])
    free = demo.chat("What is cortex?", temperature=0, tools=[WEATHER])
    assert said["choices"][0]["finish_reason"] == "stop"
    assert said["choices"][0]["message"]["content"] == free["choices"][0]["message"]["content"]


def test_with_tools_and_a_schema_the_answer_is_a_call_or_as_the_schema_says(
    demo: DemoNeuron,
) -> None:
    asked = {"temperature": 0, "tools": [WEATHER], "response_format": schema(PERSON)}
    body = demo.chat("What is the weather in Paris?", **asked)
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    said = demo.chat(**{**asked, "tool_choice": "none"})
    check_person(json.loads(said["choices"][0]["message"]["content"]))


DEEP: Any = {"type": "integer"}
for _ in range(49):
    DEEP = {"type": "array", "items": DEEP}
MANY_CHOICES = {
    "allOf": [
        {
            "anyOf": [
                {"properties": {f"p{i}{j}": {"type": "integer"}}, "required": [f"p{i}{j}"]}
                for j in range(8)
            ]
        }
        for i in range(8)
    ],
    "type": "object",
}
REFUSED = [
    ({"response_format": schema({"type": "strin"})}, "response_format", "invalid_schema"),
    ({"response_format": schema({"$ref": "#"})}, "response_format", "invalid_schema"),
    ({"response_format": schema({"$ref": "#/$defs/x"})}, "response_format", "invalid_schema"),
    (
        {"response_format": schema({"type": "array", "uniqueItems": True, "not": {}})},
        "response_format",
        "unsupported_schema",
    ),
    (
        {"response_format": schema({"enum": list(range(10_000))})},
        "response_format",
        "grammar_too_complex",
    ),
    (
        {"response_format": schema({"type": "string", "pattern": "(a{1,999}b{1,999}){1,999}"})},
        "response_format",
        "grammar_too_complex",
    ),
    ({"response_format": schema(MANY_CHOICES)}, "response_format", "grammar_too_complex"),
    ({"structured": {"regex": "(a"}}, "structured.regex", "invalid_grammar"),
    ({"structured": {"grammar": "nothing: here"}}, "structured.grammar", "invalid_grammar"),
    ({"structured": {"choice": ["x" * 40_000]}}, "structured.choice", "grammar_too_complex"),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}
            ],
            "tool_choice": "required",
        },
        "tools",
        "invalid_grammar",
    ),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "x"}}},
        "tool_choice",
        "unsupported_value",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused_with_its_field_and_a_code(
    demo: DemoNeuron, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    response = demo.ask(CHAT, {"messages": user("Hi"), "stream": stream, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert "\n" not in error["message"]


def test_unsupported_keywords_are_listed(demo: DemoNeuron) -> None:
    asked = schema({"properties": {"not": {"contains": {}}}, "if": {}, "then": {}})
    error = demo.ask(CHAT, {"messages": user("Hi"), "response_format": asked}).json()["error"]
    assert error["message"].endswith(": contains, if, then")


def test_a_schema_as_deep_as_can_be_is_quick(demo: DemoNeuron) -> None:
    body = demo.chat(max_tokens=3, response_format=schema(DEEP))
    assert body["choices"][0]["message"]["content"].startswith("[")
