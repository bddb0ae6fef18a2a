"""Good requests with something wrong somewhere: whatever it is, the answer is no fault of ours, and
its error is whole."""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from conformance.checks import (
    ANTHROPIC_TOOL,
    CHAT,
    COMPLETIONS,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    TOOL,
    Server,
    call,
    told,
    user,
)
from fakes.images import data_url, png, png_bytes
from fakes.neuron import json_reply

from cortex.wire.embeddings import packed

RESPONSES = "/v1/responses"
MUTATIONS = 60
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, 1e300, "", "x", "\0", "\U0001f600"),
    *([], {}, [None], [[]], [{}], {"": None}, {"type": "x"}, {"type": None}, "data:,", "none"),
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
URL = data_url(png_bytes())
IMAGE = {"type": "base64", "media_type": "image/png", "data": png()}
MESSAGES_BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        user([{"type": "text", "text": "a"}, {"type": "image", "source": IMAGE}]),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"b": [1]}},
            ],
        },
        user([{"type": "tool_result", "tool_use_id": "a", "content": [], "is_error": True}]),
        {"role": "system", "content": "b"},
        user([{"type": "document", "source": {"type": "text", "data": "x"}, "title": "t"}]),
    ],
    "tools": [ANTHROPIC_TOOL, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "bash", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "stop_sequences": ["x"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "metadata": {"user_id": "u"},
    "stream": False,
}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            user(
                [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": data_url(png_bytes())}},
                ]
            ),
            {
                "role": "assistant",
                "content": "b",
                "tool_calls": [call("f", "{}")],
                "reasoning": "r",
            },
            {"role": "tool", "tool_call_id": "call_0", "content": [{"type": "text", "text": "c"}]},
            {"role": "function", "name": "f", "content": "d"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "stream_options": {"include_usage": True},
        "logit_bias": {"1": 1},
        "logprobs": True,
        "top_logprobs": 1,
        "stop": ["x"],
        "metadata": {"a": "b"},
        "n": 1,
        "seed": 1,
        "thinking": {"budget_tokens": 5},
        "chat_template_kwargs": {"a": 1},
        "stream": False,
    },
    MESSAGES: MESSAGES_BODY,
    COUNT: MESSAGES_BODY,
    COMPLETIONS: {"model": "m", "prompt": ["a", "b"], "stop": "x", "n": 1, "logprobs": 1},
    EMBEDDINGS: {"model": "m", "input": [[1, 2], [3]], "encoding_format": "float"},
    RESPONSES: {
        "model": "m",
        "input": [
            {"role": "developer", "content": "s"},
            user(
                [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_image", "image_url": data_url(png_bytes())},
                ]
            ),
            {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "a",
                "output": [{"type": "input_text", "text": "b"}],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c"}],
            },
        ],
        "tools": [
            {"type": "function", "name": "f", "parameters": SCHEMA},
            {"type": "custom", "name": "g"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "stream": False,
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in *value*."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutated(body: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """*body* with one or two of its values replaced, taken away or doubled."""
    body = copy.deepcopy(body)
    for _ in range(dice.randint(1, 2)):
        *path, last = dice.choice(list(places(body)))
        holder: Any = body
        for key in path:
            holder = holder[key]
        how = dice.random()
        if how < 0.7:
            holder[last] = copy.deepcopy(dice.choice(JUNK))
        elif how < 0.85:
            del holder[last]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[f"{last}_"] = copy.deepcopy(holder[last])
    return body


@pytest.mark.parametrize("path", BODIES)
def test_ce24_nothing_that_is_sent_makes_us_fail(scripted: Server, path: str) -> None:
    vectors = [{"object": "embedding", "index": 0, "embedding": packed(array("f", [1.0]))}]
    scripted.says(json_reply({"object": "list", "data": vectors, "usage": {}}), EMBEDDINGS)
    assert scripted.post(path, BODIES[path]).status_code == 200
    dice = random.Random(path)
    for _ in range(MUTATIONS):
        sent = mutated(BODIES[path], dice)
        response = scripted.post(path, sent)
        assert response.status_code < 500, (response.status_code, response.text, sent)
        if response.status_code >= 400:
            told(response, response.status_code, anthropic=path in (MESSAGES, COUNT))
