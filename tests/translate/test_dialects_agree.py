"""One conversation said in three dialects is one prompt, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.images import png

from cortex.translate.anthropic import read_messages
from cortex.translate.chat import chat_body
from cortex.translate.responses import read_response
from cortex.translate.sealed_reasoning import seal
from cortex.wire import json
from cortex.wire.converter import structure
from cortex.wire.openai import ChatRequest

PNG = png()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# What decides the prompt.
PROMPT = ("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format")

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief.\nNo jokes."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where is it,"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "text", "text": "and is it raining there?"},
            ],
        },
        {
            "role": "assistant",
            "content": "I will look.",
            "reasoning_content": "It is Paris.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain\nand wind"},
        {"role": "user", "content": "And now?"},
        {"role": "system", "content": "The user is in a hurry."},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
    },
}
ANTHROPIC: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "No jokes."}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where is it,"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                },
                {"type": "text", "text": "and is it raining there?"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "It is Paris.", "signature": "cx"},
                {"type": "text", "text": "I will look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [
                        {"type": "text", "text": "rain"},
                        {"type": "text", "text": "and wind"},
                    ],
                },
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "system", "content": "The user is in a hurry."},
    ],
    "tools": [{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "developer", "content": "No jokes."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Where is it,"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
                {"type": "input_text", "text": "and is it raining there?"},
            ],
        },
        {"type": "reasoning", "summary": [], "encrypted_content": seal("It is Paris.")},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I will look."}]},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city":"Paris"}',
        },
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [
                {"type": "input_text", "text": "rain"},
                {"type": "input_text", "text": "and wind"},
            ],
        },
        {"role": "user", "content": "And now?"},
        {"role": "developer", "content": "The user is in a hurry."},
    ],
    "tools": [
        {"type": "function", "name": "weather", "description": "The weather.", "parameters": SCHEMA}
    ],
    "tool_choice": {"type": "function", "name": "weather"},
    "parallel_tool_calls": False,
    "text": {"format": {"type": "json_schema", "name": "output", "schema": {"type": "object"}}},
}


def prompt(body: dict[str, Any]) -> bytes:
    return json.dumps({name: body[name] for name in PROMPT})


def test_the_chat_request_is_one_that_neurons_take():
    assert structure(CHAT, ChatRequest).choice.named == "weather"


@pytest.mark.parametrize(
    "conversation",
    [read_messages(ANTHROPIC), read_response(RESPONSES).conversation],
    ids=["anthropic", "responses"],
)
def test_every_dialect_makes_the_prompt_that_chat_makes(conversation):
    assert prompt(chat_body(conversation, "m")) == prompt(CHAT)
