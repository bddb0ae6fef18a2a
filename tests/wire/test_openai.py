from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.wire.converter import structure
from cortex.wire.openai import (
    ChatRequest,
    CompletionRequest,
    MediaPart,
    Message,
    TextPart,
    TokenizeRequest,
)
from cortex.wire.tools import ToolChoice

many = settings(max_examples=100, deadline=None)
HELLO = {"role": "user", "content": "hello"}


def chat(**fields):
    return structure({"model": "m", "messages": [HELLO], **fields}, ChatRequest)


def completion(**fields):
    return structure({"model": "m", "prompt": "x", **fields}, CompletionRequest)


def function(name):
    return {"type": "function", "function": {"name": name}}


def allowed(*names, mode="auto"):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function("a b")]}, "tools[0].function.name"),
        ({"tools": [function("a"), function("a")]}, "tools"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": function("b"), "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}, "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": {"type": "odd"}, "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": {}, "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": allowed("b"), "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": allowed(), "tools": [function("a")]}, "tool_choice"),
        ({"tool_choice": allowed("a", mode="none"), "tools": [function("a")]}, "tool_choice"),
        ({"tools": [function("a"), {"type": "custom", "custom": {"name": "b"}}]}, "tools[1].type"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [{"name": "a"}], "tools": [function("b")]}, "functions"),
        ({"functions": [{"name": "a"}, {"name": "a"}]}, "functions"),
        ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call"),
        ({"functions": [{"name": "a"}], "function_call": "required"}, "function_call"),
        ({"messages": [HELLO, {"role": "function", "content": "x"}]}, "messages[1].name"),
        (
            {"messages": [{"role": "assistant", "function_call": {}}]},
            "messages[0].function_call.name",
        ),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured": {}}, "structured"),
        ({"structured": {"regex": "a", "choice": ["a"]}}, "structured"),
        ({"structured": {"regex": 5}}, "structured.regex"),
        ({"structured": {"choice": []}}, "structured.choice"),
        ({"structured": {"choice": ["a", ""]}}, "structured.choice"),
        ({"structured": {"choice": ["a", 5]}}, "structured.choice[1]"),
        ({"structured": {"grammar": ["start: A"]}}, "structured.grammar"),
        ({"structured": "a"}, "structured"),
        (
            {"structured": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured",
        ),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"on_overflow": "explode"}, "on_overflow"),
        ({"thinking": {"budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"stream": "true"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_refusals_name_the_path(fields, param):
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_null_is_absent():
    optional = ("max_tokens", "stop", "tools", "tool_choice", "stream_options", "logit_bias", "n")
    assert chat(**dict.fromkeys(optional)) == chat()


def test_the_newer_limit_wins():
    assert chat().completion_limit is None
    assert chat(max_tokens=5).completion_limit == 5
    assert chat(max_tokens=5, max_completion_tokens=9).completion_limit == 9
    assert chat(max_tokens=0, max_completion_tokens=9).completion_limit == 9


@pytest.mark.parametrize(
    ("stop", "stops"), [(None, ()), ("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())]
)
def test_stops_of_every_form(stop, stops):
    assert chat(stop=stop).stops == stops


def test_usage_is_included_when_asked_for():
    assert chat(stream_options={"include_usage": True}).include_usage
    assert not chat(stream_options={}).include_usage
    assert not chat().include_usage


def test_content_of_every_form():
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    parts = [{"type": "text", "text": "a"}, image, {"type": "refusal", "refusal": "no"}]
    found = chat(messages=[{"role": "user", "content": parts}]).messages[0].content
    assert found == (TextPart("a"), MediaPart("image_url", image), TextPart("no"))
    silent = chat(messages=[{"role": "assistant", "content": None}, HELLO]).messages
    assert silent == (Message("assistant"), Message("user", "hello"))


def test_tools_that_are_no_functions_are_let_through():
    found = chat(tools=[{"type": "web_search"}, function("a")], tool_choice="required").tools
    assert found is not None
    assert [tool.function is not None for tool in found] == [False, True]


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        (function("a"), ToolChoice("required", named="a")),
        ({"type": "function", "name": "a"}, ToolChoice("required", named="a")),
        (allowed("a"), ToolChoice("auto", frozenset({"a"}))),
        (allowed("a", "b", mode="required"), ToolChoice("required", frozenset({"a", "b"}))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "b"}]},
            ToolChoice("auto", frozenset({"b"})),
        ),
        (
            {"type": "allowed_tools", "tools": [{"type": "web_search"}]},
            ToolChoice("auto", frozenset()),
        ),
    ],
)
def test_every_form_of_tool_choice(choice, found):
    tools = [function("a"), {"type": "web_search"}, function("b")]
    asked = chat(tools=tools, tool_choice=choice)
    assert asked.choice == found
    assert asked.choice.forced is (found.mode == "required")
    counted = structure(
        {"model": "m", "messages": [HELLO], "tools": tools, "tool_choice": choice}, TokenizeRequest
    )
    assert counted.choice == found


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ({"name": "f"}, ToolChoice("required", named="f")),
    ],
)
def test_legacy_functions_are_todays_tools(call, found):
    definition = {"name": "f", "parameters": {"type": "object"}}
    asked = chat(functions=[definition], function_call=call)
    assert asked.legacy
    assert asked.choice == found
    assert asked.parallel_tool_calls is False
    assert asked.tools == chat(tools=[{"type": "function", "function": definition}]).tools
    assert not chat(function_call="auto").legacy


@pytest.mark.parametrize(
    ("prompt", "found"),
    [("x", "x"), (["x", "y"], ("x", "y")), ([1, 2], (1, 2)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_prompts_of_every_form(prompt, found):
    assert completion(prompt=prompt).prompt == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt[1]"),
        ({"prompt": [[1], ["x"]]}, "prompt[1][0]"),
        ({"prompt": [True]}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x", "echo": True}, "echo"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_completions_refusals_name_the_path(fields, param):
    with pytest.raises(BadRequest) as caught:
        completion(**fields)
    assert caught.value.param == param


def test_a_completion_may_generate_nothing():
    assert completion(max_tokens=0, echo=True).max_tokens == 0


def test_tokenize_takes_messages_or_a_prompt():
    assert structure({"model": "m", "prompt": ""}, TokenizeRequest).prompt == ""
    for wrong in ({}, {"messages": [HELLO], "prompt": "x"}, {"messages": []}):
        with pytest.raises(BadRequest) as caught:
            structure({"model": "m", **wrong}, TokenizeRequest)
        assert caught.value.param == "messages"


names = st.sampled_from([each.name for each in ChatRequest.__attrs_attrs__] + ["role", "content"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)


@many
@given(st.dictionaries(names, anything, max_size=6), st.booleans())
def test_anything_is_taken_or_a_bad_request(body, whole):
    base = {"model": "m", "messages": [HELLO]} if whole else {}
    for cls in (ChatRequest, CompletionRequest, TokenizeRequest):
        try:
            found = structure(base | body, cls)
        except BadRequest:
            continue
        assert isinstance(found, cls)


def test_structure_is_asked_for_in_one_of_its_forms():
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    asked = chat(response_format=schema).structured_format
    assert (asked.json_schema.schema, asked.json_schema.strict) == ({"type": "object"}, None)
    assert chat(response_format={"type": "json_object"}).structured_format is not None
    assert chat(response_format={"type": "text"}).structured_format is None
    text = chat(response_format={"type": "text"}, structured={"choice": ["a", "b"]})
    assert text.structured.choice == ("a", "b")
    assert chat(structured={"regex": "a", "choice": None}).structured.regex == "a"
