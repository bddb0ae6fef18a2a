from __future__ import annotations

import pytest

from cortex.errors import BadRequest
from cortex.wire import responses as wire
from cortex.wire.converter import structure

BODY = {"model": "m", "input": "Hi"}


def parse(**fields):
    return structure({**BODY, **fields}, wire.ResponsesRequest)


def items(*values):
    return parse(input=list(values)).input


def test_the_least_that_a_request_needs():
    request = parse()
    assert (request.model, request.input) == ("m", "Hi")
    assert (request.tools, request.stream, request.store) == (None, None, None)


def test_unknown_fields_are_ignored():
    assert parse(client_metadata={"a": 1}, access_programs=5, reasoning={"context": "x"}).model


def test_messages_with_and_without_a_type():
    parts = [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    message = wire.Message("user", (wire.TextPart("a"), wire.TextPart("no")))
    assert items({"role": "user", "content": parts}) == (message,)
    assert items({"type": "message", "role": "user", "content": parts, "id": "msg_1"}) == (message,)
    assert items({"role": "developer", "content": "x"}) == (wire.Message("developer", "x"),)


def test_the_items_that_are_honoured():
    assert items(
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "text"},
        {
            "type": "custom_tool_call_output",
            "call_id": "d",
            "output": [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": "data:image/png;base64,x", "detail": "auto"},
                {"type": "input_file", "file_data": "eA==", "filename": "x.txt"},
            ],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": [{"type": "reasoning_text", "text": "r"}],
            "encrypted_content": "blob",
        },
        {"type": "reasoning", "summary": [], "content": None},
        {"id": "msg_1"},
        {"type": "item_reference", "id": "msg_2"},
    ) == (
        wire.FunctionCall("c", "f", "{}"),
        wire.CallOutput("c", "done"),
        wire.CustomCall("d", "g", "text"),
        wire.CallOutput(
            "d",
            (
                wire.TextPart("a"),
                wire.ImagePart("data:image/png;base64,x"),
                wire.FilePart("eA==", filename="x.txt"),
            ),
        ),
        wire.ReasoningItem((wire.TextPart("s"),), (wire.TextPart("r"),), "blob"),
        wire.ReasoningItem((), None),
        wire.ItemReference("msg_1"),
        wire.ItemReference("msg_2"),
    )


@pytest.mark.parametrize(
    "kind", ["local_shell_call", "web_search_call", "mcp_list_tools", "compaction", "zzz"]
)
def test_items_of_other_types_are_kept_by_their_type(kind):
    assert items({"type": kind, "status": 5}) == (wire.OtherItem(kind),)


def test_tools_of_other_types_are_kept_by_their_type():
    tools = parse(
        tools=[
            {"type": "function", "name": "f", "parameters": None},
            {"type": "custom", "name": "g", "format": {"type": "text"}},
            {"type": "web_search", "filters": {}},
            {"type": "namespace", "name": "n", "tools": []},
            {"type": "mcp", "name": 5},
        ]
    ).tools
    assert tools == (
        wire.FunctionTool("f"),
        wire.CustomTool("g", format=wire.CustomFormat("text")),
        wire.OtherTool("web_search"),
        wire.OtherTool("namespace", "n"),
        wire.OtherTool("mcp"),
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "empty_string"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["x"]}, "input[0]", "invalid_type"),
        ({"input": [{}]}, "input[0].type", "missing_required_parameter"),
        ({"input": [{"type": 5}]}, "input[0].type", "invalid_type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", None),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "refusal"}]}]},
            "input[0].content[0].text",
            "invalid_type",
        ),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input[0].call_id",
            "missing_required_parameter",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]},
            "input[0].arguments",
            "invalid_type",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": {"a": 1}}]},
            "input[0].output",
            "invalid_type",
        ),
        (
            {"input": [{"type": "reasoning", "summary": "x"}]},
            "input[0].summary",
            "invalid_type",
        ),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{"type": "custom", "name": "a b"}]}, "tools[0].name", None),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools", None),
        ({"tool_choice": 5}, "tool_choice", "invalid_type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", None),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", None),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort", None),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 1.0}, "max_output_tokens", "invalid_type"),
        ({"temperature": 3}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"presence_penalty": 3}, "presence_penalty", None),
        ({"seed": 0.5}, "seed", "invalid_type"),
        ({"min_p": 2}, "min_p", None),
        ({"truncation": "middle"}, "truncation", None),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"include": "all"}, "include", "invalid_type"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(fields, param, code):
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert caught.value.error_code == (code or "invalid_value")


@pytest.mark.parametrize("missing", ["model", "input"])
def test_what_is_required(missing):
    body = {key: value for key, value in BODY.items() if key != missing}
    for cls in (wire.ResponsesRequest, wire.CountRequest):
        with pytest.raises(BadRequest) as caught:
            structure(body, cls)
        assert caught.value.param == missing
        assert caught.value.error_code == "missing_required_parameter"
