from __future__ import annotations

import pytest

from cortex.errors import BadRequest
from cortex.wire import anthropic as wire

MESSAGES = [{"role": "user", "content": "x"}]
BODY = {"model": "m", "max_tokens": 9, "messages": MESSAGES}


def refusal(**fields):
    with pytest.raises(BadRequest) as caught:
        wire.parse({**BODY, **fields}, wire.MessagesRequest)
    return caught.value.param, caught.value.error_code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"messages": {}}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": [{"content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences.0"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"name": "a", "input_schema": []}]}, "tools.0.input_schema"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"system": [{"type": "text", "text": None}]}, "system.0.text"),
    ],
)
def test_refusals_name_the_path(fields, param):
    assert refusal(**fields)[0] == param


def test_nested_blocks_are_named_by_their_whole_path():
    nested = [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text"}]}]
    found = refusal(messages=[*MESSAGES, {"role": "user", "content": nested}])
    assert found == ("messages.1.content.0.content.0.text", "missing_required_parameter")


def test_nested_without_end_is_refused():
    block: dict = {"type": "text", "text": "x"}
    for _ in range(5000):
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    refusal(messages=[{"role": "user", "content": [block]}])


def test_unknown_fields_and_blocks_are_let_through():
    strange = {"type": "hologram", "x": 1}
    found = wire.parse(
        {**BODY, "messages": [{"role": "user", "content": [strange], "y": 2}], "z": 3},
        wire.MessagesRequest,
    )
    assert found.messages == (wire.Message("user", (wire.OtherBlock("hologram", strange),)),)


def test_null_is_absent():
    fields = ("system", "tools", "tool_choice", "thinking", "stop_sequences", "stream", "metadata")
    assert wire.parse({**BODY, **dict.fromkeys(fields)}, wire.MessagesRequest) == wire.parse(
        BODY, wire.MessagesRequest
    )


def test_a_count_takes_no_limit():
    found = wire.parse({"model": "m", "messages": MESSAGES}, wire.CountRequest)
    assert found.messages[0].content == "x"
