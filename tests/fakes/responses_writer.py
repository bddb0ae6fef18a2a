"""Conversations as Responses requests, as a client could write them: the reader's oracle."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import attrs

from cortex.translate.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Role,
    Text,
    Thinking,
    Tool,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
)
from cortex.translate.sealed_reasoning import seal

Flip = Callable[[], bool]  # which of two ways to say the same


def write(conversation: Conversation, flip: Flip) -> dict[str, Any]:
    """A body of ``/v1/responses`` that says *conversation*, in ways that *flip* chooses."""
    body: dict[str, Any] = {"model": conversation.model}
    system = list(conversation.system)
    if system and flip():
        body["instructions"] = system.pop(0).text
    items = [_message("developer" if flip() else "system", [text], flip) for text in system]
    for turn in conversation.turns:
        if turn.role is Role.ASSISTANT:
            items += [_said(block, flip) for block in turn.blocks]
        elif turn.role is Role.SYSTEM:
            items.append(_message("developer" if flip() else "system", turn.blocks, flip))
        else:
            items += _user(turn.blocks, flip)
    if flip():
        items.insert(0, {"type": "web_search_call", "id": "ws_1", "status": "completed"})
    body["input"] = items
    _options(body, conversation)
    return body


def _options(body: dict[str, Any], conversation: Conversation) -> None:
    sampling, choice = conversation.sampling, conversation.tool_choice
    assert not sampling.stop
    given = {
        **{name: value for name, value in attrs.asdict(sampling).items() if name != "stop"},
        "max_output_tokens": conversation.max_tokens,
        "user": conversation.user,
        "stream": conversation.stream or None,
    }
    body |= {key: value for key, value in given.items() if value is not None}
    if conversation.reasoning.effort is not None:
        body["reasoning"] = {"effort": conversation.reasoning.effort, "summary": "auto"}
    if conversation.schema is not None:
        form = {"type": "json_schema", "name": "x", "schema": conversation.schema}
        body["text"] = {"format": form}
    if conversation.tools:
        body["tools"] = [{"type": "local_shell"}, *map(_tool, conversation.tools)]
    if choice is not None:
        body["tool_choice"] = _choice(choice)
        if choice.parallel is not None:
            body["parallel_tool_calls"] = choice.parallel


def _tool(tool: Tool) -> dict[str, Any]:
    told = {"type": "function", "name": tool.name, "parameters": tool.parameters}
    return {**told, "description": tool.description, "strict": tool.strict}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.mode is ToolMode.NAMED:
        return {"type": "function", "name": choice.name}
    if choice.allowed is None:
        return choice.mode.value
    tools = [{"type": "function", "name": name} for name in choice.allowed]
    return {"type": "allowed_tools", "mode": choice.mode.value, "tools": tools}


def _said(block: Block, flip: Flip) -> dict[str, Any]:
    """One item of the assistant's."""
    if isinstance(block, Thinking):
        item: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": []}
        if flip():
            return {**item, "encrypted_content": seal(block.text)}
        if flip():
            return {**item, "content": [{"type": "reasoning_text", "text": block.text}]}
        foreign = {"encrypted_content": "gAAAA"} if flip() else {}
        return {**item, "summary": [{"type": "summary_text", "text": block.text}], **foreign}
    if isinstance(block, ToolUse):
        arguments = json.loads(block.arguments)
        if list(arguments) == ["input"] and isinstance(arguments["input"], str) and flip():
            call = {"type": "custom_tool_call", "input": arguments["input"]}
        else:
            call = {"type": "function_call", "arguments": block.arguments}
        return {**call, "id": "fc_1", "call_id": block.id, "name": block.name}
    return _message("assistant", [block], flip)


def _user(blocks: tuple[Block, ...], flip: Flip) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    waiting: list[Block] = []
    for block in blocks:
        if isinstance(block, ToolResult):
            items += [_message("user", waiting, flip)] if waiting else []
            waiting = []
            kind = "function_call_output" if flip() else "custom_tool_call_output"
            output = _content(list(block.content), "input_text", flip)
            items.append({"type": kind, "call_id": block.tool_use_id, "output": output})
        else:
            waiting.append(block)
    if waiting or not items:
        items.append(_message("user", waiting, flip))
    return items


def _message(role: str, blocks: Any, flip: Flip) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    message = {"role": role, "content": _content(list(blocks), kind, flip)}
    return {"type": "message", "id": "msg_1", **message} if flip() else message


def _content(blocks: list[Block], kind: str, flip: Flip) -> str | list[dict[str, Any]]:
    if len(blocks) == 1 and isinstance(blocks[0], Text) and flip():
        return blocks[0].text
    return [_part(block, kind) for block in blocks]


def _part(block: Block, kind: str) -> dict[str, Any]:
    if isinstance(block, Image):
        return {"type": "input_image", "detail": "auto", "image_url": block.url}
    if isinstance(block, Document):
        packed = base64.b64encode(block.text.encode()).decode()
        part = {"type": "input_file", "file_data": f"data:text/plain;base64,{packed}"}
        return part if block.title is None else {**part, "filename": block.title}
    assert isinstance(block, Text)
    return {"type": kind, "text": block.text}
