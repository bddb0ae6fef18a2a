"""CJ: structured output and logprobs, with the real engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conformance.checks import CHAT, TOOL, Server

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "role": {"enum": ["admin", "user"]},
    },
    "required": ["name", "age", "role"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"enum": ["a", "b"]},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "left"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
HOT = {"temperature": 1.5, "seed": 5, "max_tokens": 200}


def shaped(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "out", "schema": schema, **more}}


def text(body: Any) -> str:
    said: str = body["choices"][0]["message"]["content"]
    return said


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_cj01_an_object_is_one(real: Server) -> None:
    body = real.chat(response_format={"type": "json_object"}, **{**HOT, "max_tokens": 400})
    if body["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text(body)), dict)
    else:
        assert text(body).lstrip().startswith("{")


@pytest.mark.parametrize("strict", [{}, {"strict": True}, {"strict": False}], ids="CJ03-{}".format)
def test_cj02_cj03_cj06_a_schema_is_held_to(real: Server, strict: Any) -> None:
    value = json.loads(text(real.chat(response_format=shaped(PERSON, **strict), **HOT)))
    assert list(value) == ["name", "age", "role"]
    assert len(value["name"]) <= 8
    assert 0 <= value["age"] <= 99
    assert value["role"] in ("admin", "user")


def test_cj04_a_recursive_schema(real: Server) -> None:
    body = real.chat(response_format=shaped(TREE), **HOT)
    if body["choices"][0]["finish_reason"] == "stop":
        assert json.loads(text(body))["value"] in ("a", "b")


def test_cj05_what_cannot_be_enforced_is_refused_by_name(real: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    error = real.refused(CHAT, real.body(response_format=shaped(schema)))
    assert error["param"] == "response_format"
    assert "not" in error["message"]


def test_cj07_a_truncated_answer_says_so(real: Server) -> None:
    body = real.chat(response_format=shaped(PERSON), **{**HOT, "max_tokens": 3})
    assert body["choices"][0]["finish_reason"] == "length"


def test_cj08_a_schema_beside_tools(real: Server) -> None:
    body = real.chat(response_format=shaped(PERSON), tools=[TOOL], **HOT)
    message = body["choices"][0]["message"]
    assert "tool_calls" in message or json.loads(message["content"])


def test_cj09_a_stop_string_within_the_json(real: Server) -> None:
    body = real.chat(response_format=shaped(PERSON), stop='"age"', **HOT)
    assert '"age"' not in text(body)
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("top", [3, 0], ids=["CJ10", "CJ12"])
def test_logprobs_have_all_keys_and_their_order(real: Server, top: int) -> None:
    body = real.chat(logprobs=True, top_logprobs=top, max_tokens=6)
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == body["usage"]["completion_tokens"]
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["logprob"] <= 0
        tops = [each["logprob"] for each in entry["top_logprobs"]]
        assert len(tops) == top
        assert tops == sorted(tops, reverse=True)
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert spelled.decode("utf-8", "replace").startswith(text(body))


def test_cj11_what_json_cannot_say_is_the_lowest_number(real: Server) -> None:
    body = real.body(logprobs=True, top_logprobs=20, max_tokens=3, response_format=shaped(PERSON))
    raw = real.post(CHAT, body).content
    assert not {b"NaN", b"Infinity"} & set(raw.replace(b",", b" ").replace(b":", b" ").split())
    for entry in json.loads(raw)["choices"][0]["logprobs"]["content"]:
        assert all(each["logprob"] >= -9999.0 for each in entry["top_logprobs"])


@pytest.mark.parametrize(
    "schema",
    [nested(200), {"enum": [f"value {n}" for n in range(100_000)]}],
    ids=["CJ13-deep", "CJ13-wide"],
)
def test_cj13_a_monstrous_schema_is_refused(real: Server, schema: Any) -> None:
    error = real.refused(CHAT, real.body(response_format=shaped(schema)))
    assert error["type"] == "invalid_request_error"


def test_cj14_a_schema_holds_after_the_thinking(real: Server) -> None:
    body = real.chat(
        response_format=shaped(PERSON),
        chat_template_kwargs={"enable_thinking": True},
        **{**HOT, "max_tokens": 400},
    )
    message = body["choices"][0]["message"]
    assert message["reasoning_content"]
    assert not message["content"] or json.loads(message["content"])["role"]
