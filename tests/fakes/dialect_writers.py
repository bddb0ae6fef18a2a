"""Conversations as requests of the chat and messages dialects, as clients would write them: the
readers' oracle. One message a block, in order, and nothing clever."""

from __future__ import annotations

import json
from typing import Any

from cortex.translate.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Role,
    Text,
    Thinking,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
)


def as_chat(conversation: Conversation) -> dict[str, Any]:
    """A ``/v1/chat/completions`` body that says *conversation*."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        parts = [{"type": "text", "text": text.text} for text in conversation.system]
        messages.append({"role": "developer", "content": parts})
    for turn in conversation.turns:
        if turn.role is Role.SYSTEM:
            parts = [chat_part(block) for block in turn.blocks]
            messages.append({"role": "system", "content": parts})
        elif turn.role is Role.ASSISTANT:
            messages += [_said(block) for block in turn.blocks]
        else:
            messages += _asked(turn.blocks)
    body: dict[str, Any] = {"model": conversation.model, "messages": messages}
    if conversation.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": _given(
                    name=tool.name,
                    description=tool.description,
                    parameters=tool.parameters,
                    strict=tool.strict,
                ),
            }
            for tool in conversation.tools
        ]
        if conversation.tool_choice is not None:
            body |= _chat_choice(conversation.tool_choice)
    reasoning, sampling = conversation.reasoning, conversation.sampling
    if reasoning.enabled is not None:
        body["chat_template_kwargs"] = {"enable_thinking": reasoning.enabled}
    if reasoning.budget_tokens is not None:
        body["thinking"] = {"budget_tokens": reasoning.budget_tokens}
    if conversation.schema is not None:
        schema = {"name": "output", "schema": conversation.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    last = conversation.turns[-1]
    if last.role is Role.ASSISTANT and isinstance(last.blocks[-1], Text) and conversation.continues:
        body["continue_final_message"] = True
    return body | _given(
        reasoning_effort=reasoning.effort,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=list(sampling.stop) or None,
        max_tokens=conversation.max_tokens,
        user=conversation.user,
        on_overflow=conversation.overflow.value,
        stream=conversation.stream or None,
    )


def as_messages(conversation: Conversation) -> dict[str, Any]:
    """A ``/v1/messages`` body that says *conversation*."""
    body: dict[str, Any] = {
        "model": conversation.model,
        "system": [{"type": "text", "text": text.text} for text in conversation.system],
        "messages": [
            {"role": turn.role.value, "content": [_block(block) for block in turn.blocks]}
            for turn in conversation.turns
        ],
        "tools": [
            _given(
                name=tool.name,
                description=tool.description,
                input_schema=tool.parameters,
                strict=tool.strict,
            )
            for tool in conversation.tools
        ],
    }
    choice, reasoning = conversation.tool_choice, conversation.reasoning
    if choice is not None:
        kind = {ToolMode.REQUIRED: "any", ToolMode.NAMED: "tool"}.get(choice.mode, choice.mode)
        body["tool_choice"] = _given(type=str(kind), name=choice.name)
        if choice.parallel is False:
            body["tool_choice"]["disable_parallel_tool_use"] = True
    if reasoning.enabled is not None:
        kind = "enabled" if reasoning.enabled else "disabled"
        body["thinking"] = _given(type=kind, budget_tokens=reasoning.budget_tokens)
    config = _given(effort=reasoning.effort)
    if conversation.schema is not None:
        config["format"] = {"type": "json_schema", "schema": conversation.schema}
    sampling = conversation.sampling
    return body | _given(
        output_config=config or None,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_sequences=list(sampling.stop) or None,
        max_tokens=conversation.max_tokens,
        metadata=None if conversation.user is None else {"user_id": conversation.user},
        stream=conversation.stream or None,
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _said(block: Block) -> dict[str, Any]:
    if isinstance(block, Thinking):
        return {"role": "assistant", "content": "", "reasoning": block.text}
    if isinstance(block, ToolUse):
        function = {"name": block.name, "arguments": block.arguments}
        call = {"id": block.id, "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    assert isinstance(block, Text)
    return {"role": "assistant", "content": block.text}


def _asked(blocks: tuple[Block, ...]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, ToolResult):
            parts = [chat_part(each) for each in block.content]
            if block.is_error and any(part["type"] == "image_url" for part in parts):
                parts.insert(0, {"type": "text", "text": "Error:"})
            elif block.is_error:
                text = "\n".join(part["text"] for part in parts)
                parts = [{"type": "text", "text": f"Error: {text}" if text else "Error"}]
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": parts})
    rest = [chat_part(block) for block in blocks if not isinstance(block, ToolResult)]
    if rest or not messages:
        messages.append({"role": "user", "content": rest})
    return messages


def chat_part(block: Block) -> dict[str, Any]:
    if isinstance(block, Image):
        return {"type": "image_url", "image_url": {"url": block.url}}
    if isinstance(block, Document):
        named = (("title", block.title), ("source", block.origin), ("context", block.context))
        lines = "".join(f"{name}: {value}\n" for name, value in named if value)
        return {"type": "text", "text": f"<document>\n{lines}{block.text}\n</document>"}
    assert isinstance(block, Text)
    return {"type": "text", "text": block.text}


def _chat_choice(choice: ToolChoice) -> dict[str, Any]:
    named: Any = choice.mode.value
    if choice.mode is ToolMode.NAMED:
        named = {"type": "function", "function": {"name": choice.name}}
    elif choice.allowed is not None:
        tools = [{"type": "function", "name": name} for name in choice.allowed]
        named = {"type": "allowed_tools", "mode": choice.mode.value, "tools": tools}
    return _given(tool_choice=named, parallel_tool_calls=choice.parallel)


def _block(block: Block) -> dict[str, Any]:
    match block:
        case Text(text):
            return {"type": "text", "text": text}
        case Thinking(text):
            return {"type": "thinking", "thinking": text, "signature": "of another server"}
        case ToolUse(id, name, arguments):
            return {"type": "tool_use", "id": id, "name": name, "input": json.loads(arguments)}
        case ToolResult(id, content, is_error):
            inner = [_block(each) for each in content]
            told = {"type": "tool_result", "tool_use_id": id, "content": inner}
            return {**told, "is_error": True} if is_error else told
        case Image(url):
            media_type, _, data = url.removeprefix("data:").partition(";base64,")
            source = {"type": "base64", "media_type": media_type, "data": data}
            return {"type": "image", "source": source}
        case Document(text, title, context, None):
            source = {"type": "text", "media_type": "text/plain", "data": text}
            return {"type": "document", "source": source, **_given(title=title, context=context)}
        case Document(text, title, _, origin):
            found = [{"type": "text", "text": text}]
            return {"type": "search_result", "content": found, **_given(title=title, source=origin)}
    raise AssertionError(block)
