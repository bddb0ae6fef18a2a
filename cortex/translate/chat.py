"""Conversations as the chat-completion bodies that neurons take.

The bodies are the same, byte for byte, for the same conversation, so that a prompt's prefix is
found in the cache; nothing that a template can decide (where reasoning goes, whether a system
message may stand in the middle) is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from cortex.translate.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Role,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
    Turn,
)

NO_RESULT = "(no result)"  # for a call that the history has no answer to
_SAMPLING = [field.name for field in attrs.fields(Sampling) if field.name != "stop"]


def chat_body(conversation: Conversation, model: str) -> dict[str, Any]:
    """The ``/v1/chat/completions`` body, to be sent to a neuron that knows it as *model*."""
    body = _prompt(conversation, model)
    sampling = conversation.sampling
    if conversation.max_tokens is not None:
        body["max_completion_tokens"] = max(1, conversation.max_tokens)
    for name in _SAMPLING:
        _set(body, name, getattr(sampling, name))
    _set(body, "stop", list(sampling.stop) or None)
    _set(body, "user", conversation.user)
    if conversation.schema is not None:
        schema = {"name": "output", "schema": conversation.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    choice = conversation.tool_choice
    if choice is not None and choice.parallel is not None and conversation.tools:
        body["parallel_tool_calls"] = choice.parallel
    body["on_overflow"] = conversation.overflow.value
    body["stream"] = conversation.stream
    if conversation.stream:
        body["stream_options"] = {"include_usage": True}
    return body


def tokenize_body(conversation: Conversation, model: str) -> dict[str, Any]:
    """The ``/tokenize`` body that counts the same prompt."""
    return _prompt(conversation, model)


def _prompt(conversation: Conversation, model: str) -> dict[str, Any]:
    """What decides the prompt's tokens."""
    messages = list(_messages(conversation))
    if all(message["role"] == Role.SYSTEM for message in messages):
        messages.append({"role": Role.USER.value, "content": ""})  # templates want a turn
    body: dict[str, Any] = {"model": model, "messages": messages}
    if conversation.tools:
        body["tools"] = [_tool(tool) for tool in conversation.tools]
        if conversation.tool_choice is not None:
            body["tool_choice"] = _choice(conversation.tool_choice)
    reasoning = conversation.reasoning
    if reasoning.enabled is not None:
        body["chat_template_kwargs"] = {"enable_thinking": reasoning.enabled}
    if reasoning.budget_tokens is not None:
        body["thinking"] = {"budget_tokens": reasoning.budget_tokens}
    _set(body, "reasoning_effort", reasoning.effort)
    last = messages[-1]
    spoken = last["role"] == Role.ASSISTANT and "tool_calls" not in last and last["content"]
    if spoken and conversation.continues:
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
    return body


def _set(body: dict[str, Any], key: str, value: Any) -> None:
    if value is not None:
        body[key] = value


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    _set(function, "description", tool.description)
    function["parameters"] = tool.parameters
    _set(function, "strict", tool.strict)
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.mode is ToolMode.NAMED:
        return _named(choice.name)
    if choice.allowed is not None:
        tools = [_named(name) for name in choice.allowed]
        allowed = {"mode": choice.mode.value, "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice.mode.value


def _named(name: str | None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _messages(conversation: Conversation) -> Iterator[dict[str, Any]]:
    """One leading system message, then the turns."""
    if conversation.system:
        yield {"role": Role.SYSTEM.value, "content": _joined(conversation.system)}
    pending: list[str] = []  # calls that have no result yet, in their order
    for turn in conversation.turns:
        if turn.role is Role.SYSTEM:
            yield {"role": Role.SYSTEM.value, "content": _joined(turn.blocks)}
        elif turn.role is Role.ASSISTANT:
            yield from _unanswered(pending)
            pending = [block.id for block in turn.blocks if isinstance(block, ToolUse)]
            yield from _assistant(turn)
        else:
            yield from _user(turn, pending)
            pending = []
    yield from _unanswered(pending)


def _assistant(turn: Turn) -> Iterator[dict[str, Any]]:
    """The turn as messages of reasoning, text and calls, in this order within each message."""
    thinking: list[str] = []
    text: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in turn.blocks:
        if (calls and not isinstance(block, ToolUse)) or (text and isinstance(block, Thinking)):
            yield _assistant_message(thinking, text, calls)
            thinking, text, calls = [], [], []
        if isinstance(block, Thinking):
            thinking.append(block.text)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": block.arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, Text | Document):
            text.append(_text(block))
    if thinking or text or calls:
        yield _assistant_message(thinking, text, calls)


def _assistant_message(
    thinking: list[str], text: list[str], calls: list[dict[str, Any]]
) -> dict[str, Any]:
    content = "".join(text)
    message: dict[str, Any] = {"role": Role.ASSISTANT.value, "content": content}
    if calls and not content:
        message["content"] = None
    if thinking:
        message["reasoning_content"] = "".join(thinking)
    if calls:
        message["tool_calls"] = calls
    return message


def _user(turn: Turn, pending: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The results first, in the order of the calls they answer, then the rest as one message.

    Many templates know the order of the results only, not their ids.
    """
    results = [block for block in turn.blocks if isinstance(block, ToolResult)]
    answered = {result.tool_use_id for result in results}
    order = {call: index for index, call in enumerate(pending)}
    answers = [(order.get(each.tool_use_id, len(order)), _result(each)) for each in results]
    missing = [call for call in pending if call not in answered]
    answers += [(order[call], _tool_message(call, NO_RESULT)) for call in missing]
    for _, message in sorted(answers, key=lambda answer: answer[0]):
        yield message
    rest = [block for block in turn.blocks if not isinstance(block, ToolResult)]
    if rest or not results:
        yield {"role": Role.USER.value, "content": _content(rest)}


def _unanswered(pending: Iterable[str]) -> Iterator[dict[str, Any]]:
    for call in pending:
        yield _tool_message(call, NO_RESULT)


def _tool_message(call: str, content: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def _result(result: ToolResult) -> dict[str, Any]:
    content = _content(result.content)
    if result.is_error:
        if isinstance(content, str):
            content = f"Error: {content}" if content else "Error"
        else:
            content = [{"type": "text", "text": "Error:"}, *content]
    return _tool_message(result.tool_use_id, content)


def _content(blocks: Sequence[Block]) -> str | list[dict[str, Any]]:
    """Text alone as one string, which every template takes; with images as parts."""
    if not any(isinstance(block, Image) for block in blocks):
        return _joined(blocks)
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, Image):
            parts.append({"type": "image_url", "image_url": {"url": block.url}})
        elif isinstance(block, Text | Document):
            parts.append({"type": "text", "text": _text(block)})
    return parts


def _joined(blocks: Iterable[Block]) -> str:
    return "\n".join(_text(block) for block in blocks if isinstance(block, Text | Document))


def _text(block: Text | Document) -> str:
    if isinstance(block, Text):
        return block.text
    lines = ["<document>"]
    lines += [f"title: {block.title}"] if block.title else []
    lines += [f"source: {block.origin}"] if block.origin else []
    lines += [f"context: {block.context}"] if block.context else []
    return "\n".join([*lines, block.text, "</document>"])
