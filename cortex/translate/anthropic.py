"""Anthropic's Messages requests as conversations.

Lenient where a client could not recover (`reference/api.md` 3.2 to 3.4): fields, tools and blocks
that only the vendor knows are left out or shown to the model as a note, never refused. Refused is
what cannot be honoured without lying: media that would have to be fetched, PDF, a choice of a tool
that is not there, a request that offers the vendor's server tools alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import attrs

from cortex.errors import clip
from cortex.translate import anthropic_media
from cortex.translate.anthropic_tools import check_served, choice_of, tools_of
from cortex.translate.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Overflow,
    Reasoning,
    Role,
    Sampling,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.wire import anthropic as wire
from cortex.wire import json

# Claude Code's first system block; its `cch` changes with each request, which would keep any two
# prompts from sharing a cached prefix.
BILLING_HEADER = "x-anthropic-billing-header"
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
_THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}


def read_messages(body: dict[str, Any]) -> Conversation:
    """The conversation of a ``/v1/messages`` body, or `BadRequest` in Anthropic's words."""
    request = wire.parse(body, wire.MessagesRequest)
    check_served(request.tools or ())
    return attrs.evolve(
        _conversation(request),
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences or (),
        ),
        max_tokens=request.max_tokens,
        stream=bool(request.stream),
        user=request.metadata.user_id if request.metadata else None,
    )


def read_count(body: dict[str, Any]) -> Conversation:
    """The conversation of a ``/v1/messages/count_tokens`` body, or `BadRequest`."""
    return _conversation(wire.parse(body, wire.CountRequest))


def _conversation(request: wire.CountRequest) -> Conversation:
    turns = tuple(_merged(_turns(request.messages)))
    tools = tools_of(request.tools or ())
    return Conversation(
        model=request.model,
        system=tuple(_system(request.system)),
        turns=turns or (Turn(Role.USER, ()),),
        tools=tools,
        tool_choice=choice_of(request.tool_choice, request.tools or (), tools),
        reasoning=_reasoning(request),
        schema=_schema(request),
        overflow=Overflow.ERROR,
    )


def _reasoning(request: wire.CountRequest) -> Reasoning:
    config, thinking = request.output_config, request.thinking
    effort = _EFFORTS.get(config.effort) if config and config.effort else None
    if thinking is None:
        return Reasoning(effort=effort)
    enabled = _THINKING.get(thinking.type)
    return Reasoning(
        enabled=enabled,
        budget_tokens=thinking.budget_tokens if enabled else None,
        effort=effort,
        shown=thinking.display != "omitted",
    )


def _schema(request: wire.CountRequest) -> dict[str, Any] | None:
    wanted = request.output_config.format if request.output_config else None
    wanted = wanted or request.output_format
    return wanted.schema if wanted is not None and wanted.type == "json_schema" else None


def _system(content: wire.Content) -> Iterator[Text]:
    for block in _texts(content):
        if not block.text.startswith(BILLING_HEADER):
            yield block


def _texts(content: wire.Content) -> Iterator[Text]:
    """The text in *content*; other blocks have no place in a system prompt."""
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for block in content or ():
        if isinstance(block, wire.TextBlock) and block.text:
            yield Text(block.text)


def _turns(messages: Iterable[wire.Message]) -> Iterator[Turn]:
    for index, message in enumerate(messages):
        role = Role(message.role)
        blocks: tuple[Block, ...]
        if role is Role.SYSTEM:
            blocks = tuple(_texts(message.content))
        else:
            path = f"messages.{index}.content"
            blocks = tuple(_blocks(message.content, path, _KINDS[role]))
        # An empty user turn still parts two assistant turns; the others say nothing.
        if blocks or role is Role.USER:
            yield Turn(role, blocks)


def _merged(turns: Iterable[Turn]) -> Iterator[Turn]:
    """*turns* with neighbours of one role made one."""
    for role, same in itertools.groupby(turns, key=lambda turn: turn.role):
        yield Turn(role, tuple(block for turn in same for block in turn.blocks))


B = TypeVar("B")

_RESULT: tuple[type[Any], ...] = (Text, Image, Document)
_KINDS: dict[Role, tuple[type[Any], ...]] = {
    Role.USER: (*_RESULT, ToolResult),
    Role.ASSISTANT: (Text, Image, Document, Thinking, ToolUse),
}


def _blocks(content: wire.Content, path: str, kinds: tuple[type[B], ...]) -> Iterator[B]:
    """*content*'s blocks of *kinds*; those out of place (a user's thinking) are left out."""
    if isinstance(content, str):
        content = (wire.TextBlock(content),)
    from_model = Thinking in kinds
    for index, source in enumerate(content or ()):
        block = _block(source, f"{path}.{index}", from_model)
        if isinstance(block, kinds):
            yield block


def _block(source: wire.Block, path: str, from_model: bool) -> Block | None:
    match source:
        case wire.TextBlock(text):
            return Text(text) if text else None
        case wire.ThinkingBlock(thinking):
            return Thinking(thinking) if thinking else None
        case wire.ToolUseBlock(id, name, arguments):
            return ToolUse(id, name, json.dumps(arguments).decode())
        case wire.ToolResultBlock(tool_use_id, content, is_error):
            nested = tuple(_blocks(content, f"{path}.content", _RESULT))
            return ToolResult(tool_use_id, nested, bool(is_error))
        case wire.ImageBlock(image):
            return anthropic_media.image(image, path)
        case wire.DocumentBlock(document, title, context):
            text = anthropic_media.document_text(document, f"{path}.document.source")
            return Document(text, title=title, context=context)
        case wire.SearchResultBlock(content, title, origin):
            text = "\n".join(block.text for block in _texts(content))
            return Document(text, title=title, origin=origin)
        case wire.OtherBlock(kind, value):
            return _other(kind, value, from_model)


def _other(kind: str, value: dict[str, Any], from_model: bool) -> Block | None:
    """A block of a type we do not know: a summary's text, a note to the model, or nothing."""
    if kind == "compaction" and isinstance(value.get("content"), str):
        return Text(value["content"]) if value["content"] else None
    if kind == "tool_reference" and isinstance(value.get("tool_name"), str):
        return Text(value["tool_name"]) if value["tool_name"] else None
    if from_model:
        return None
    return Text(f"[content of type {clip(kind, 64)} is not supported here]")
