"""Schemas of attrs classes, against what the classes themselves take."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from jsonschema import Draft202012Validator

from cortex.errors import BadRequest
from cortex.wire import anthropic, limits, openai, responses
from cortex.wire.converter import structure
from cortex.wire.reference.requests import request_components
from cortex.wire.reference.schema import INTEGER, STRING, Components, nullable, record

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
SHOUT = {"model": "m", "max_tokens": 1, "messages": MESSAGES}


@attrs.frozen
class Leaf:
    """What it is.

    And more of it.
    """

    name: str = attrs.field(validator=limits.non_empty)
    size: int | None = attrs.field(default=None, validator=limits.at_least(1, 9))


@attrs.frozen
class Tree:
    leaves: tuple[Leaf, ...] = ()
    inner: Tree | None = None


def test_a_class_is_named_once_and_may_hold_itself():
    components = Components({})
    assert components.of(Tree) == {"$ref": "#/components/schemas/Tree"}
    assert components.schemas == {
        "Tree": {
            "type": "object",
            "properties": {
                "leaves": {"type": "array", "items": {"$ref": "#/components/schemas/Leaf"}},
                "inner": {"anyOf": [{"$ref": "#/components/schemas/Tree"}, {"type": "null"}]},
            },
        },
        "Leaf": {
            "description": "What it is.",
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "size": {
                    "anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}]
                },
            },
            "required": ["name"],
        },
    }


def test_two_schemas_of_one_name_are_refused():
    components = Components({})
    components.of(Leaf)
    with pytest.raises(ValueError, match="two schemas are called Leaf"):
        components.add({"Leaf": STRING})


def test_a_record_tells_what_may_be_missing():
    assert record({"a": STRING, "b?": nullable(INTEGER)}) == {
        "type": "object",
        "properties": {"a": STRING, "b": {"anyOf": [INTEGER, {"type": "null"}]}},
        "required": ["a"],
    }


def verdicts(cls: type, body: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the schema takes *body*, and whether the class does."""
    components = request_components()
    schema = components.of(cls) | {"components": {"schemas": components.schemas}}
    fits = Draft202012Validator(schema).is_valid(body)
    try:
        structure(body, cls)
    except BadRequest:
        return fits, False
    return fits, True


@pytest.mark.parametrize(
    ("cls", "body", "right"),
    [
        (openai.ChatRequest, CHAT, True),
        (openai.ChatRequest, {**CHAT, "unheard": {"of": 1}}, True),
        (openai.ChatRequest, {**CHAT, "temperature": None, "stop": ["a"]}, True),
        (openai.ChatRequest, {**CHAT, "temperature": 2.5}, False),
        (openai.ChatRequest, {**CHAT, "top_p": 0}, False),
        (openai.ChatRequest, {**CHAT, "stream": "yes"}, False),
        (openai.ChatRequest, {**CHAT, "on_overflow": "burst"}, False),
        (openai.ChatRequest, {**CHAT, "messages": []}, False),
        (openai.ChatRequest, {"messages": MESSAGES}, False),
        (openai.ChatRequest, {**CHAT, "messages": [{"role": "king", "content": "x"}]}, False),
        (openai.CompletionRequest, {"model": "m", "prompt": [[1, 2], [3]]}, True),
        (openai.CompletionRequest, {"model": "m", "prompt": {"text": "x"}}, False),
        (anthropic.MessagesRequest, SHOUT, True),
        (anthropic.MessagesRequest, {"model": "m", "messages": MESSAGES}, False),
        (
            anthropic.MessagesRequest,
            {**SHOUT, "messages": [{"role": "user", "content": [{"type": "novel", "x": 1}]}]},
            True,
        ),
        (
            anthropic.MessagesRequest,
            {**SHOUT, "messages": [{"role": "user", "content": [{"text": "no type"}]}]},
            False,
        ),
        (responses.ResponsesRequest, {"model": "m", "input": "hi"}, True),
        (responses.ResponsesRequest, {"model": "m", "input": [{"role": "user"}]}, False),
        (responses.ResponsesRequest, {"model": "m", "input": [{"type": "mystery"}]}, True),
        (responses.ResponsesRequest, {"model": "m"}, False),
    ],
)
def test_schema_and_class_agree(cls: type, body: dict[str, Any], right: bool):
    assert verdicts(cls, body) == (right, right)
