"""OpenAI's chat requests as conversations.

Total: every request whose shape is legal becomes one, however odd its order. What a conversation
has no word for (several choices, logprobs, penalties, seeds) is left out, so that this tells what a
request is about; the gateway sends such requests on as they came.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from cortex.errors import clip
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
    Tool,
    ToolChoice,
    ToolMode,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.wire import openai as wire
from cortex.wire.converter import structure
from cortex.wire.tools import REQUIRED, function_names

_JSON_OBJECT = {"type": "object"}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_SYSTEM = ("system", "developer")


def read_chat(body: dict[str, Any]) -> Conversation:
    """The conversation of a ``/v1/chat/completions`` body, or `BadRequest`."""
    return conversation_of(structure(body, wire.ChatRequest))


def conversation_of(request: wire.ChatRequest) -> Conversation:
    """The conversation of *request*. A system message that begins it is its system prompt; others
    stay in their place."""
    messages = request.messages
    leading = messages[:1] if messages[0].role in _SYSTEM else ()
    system = tuple(block for message in leading for block in _texts(message.content))
    return Conversation(
        model=request.model,
        system=system,
        turns=tuple(_merged(_turns(messages[len(leading) :], len(leading)))),
        tools=tuple(_tools(request)),
        tool_choice=_choice(request),
        reasoning=_reasoning(request),
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stops,
        ),
        max_tokens=request.completion_limit,
        schema=_schema(request),
        overflow=Overflow(request.on_overflow or Overflow.CLAMP),
        continues=bool(request.continue_final_message),
        stream=bool(request.stream),
        user=request.user,
    )


def _turns(messages: Iterable[wire.Message], first: int) -> Iterator[Turn]:
    for index, message in enumerate(messages, first):
        path = f"messages[{index}]"
        if message.role in _SYSTEM:
            yield Turn(Role.SYSTEM, tuple(_texts(message.content)))
        elif message.role == "assistant":
            yield Turn(Role.ASSISTANT, tuple(_assistant(message)))
        elif message.role == "user":
            yield Turn(Role.USER, tuple(_content(message.content, path)))
        else:
            call = message.tool_call_id or _legacy_id(message.name)
            result = tuple(block for block in _content(message.content, path) if block != Text(""))
            yield Turn(Role.USER, (ToolResult(call, result),))


def _merged(turns: Iterable[Turn]) -> Iterator[Turn]:
    """*turns* with neighbours of one side made one: results and what is said after them too."""
    for role, same in itertools.groupby(turns, key=lambda turn: turn.role):
        yield Turn(role, tuple(block for turn in same for block in turn.blocks))


def _assistant(message: wire.Message) -> Iterator[Block]:
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        yield Thinking(reasoning)
    calls = message.tool_calls or ()
    legacy = message.function_call if not calls else None
    silent = bool(reasoning or calls or legacy)
    for block in _texts(message.content):
        if block.text or not silent:
            yield block
    for call in calls:
        name = call.function.name
        yield ToolUse(call.id or _legacy_id(name), name, call.function.arguments)
    if legacy is not None:
        yield ToolUse(_legacy_id(legacy.name), legacy.name, legacy.arguments)


def _legacy_id(name: str | None) -> str:
    """The id of a call that has none, alike in call and result."""
    return f"call_{name}"


def _texts(content: wire.Content) -> Iterator[Text]:
    """The text in *content*; other parts have no place in what a system or a model says."""
    if isinstance(content, str):
        yield Text(content)
        return
    for part in content or ():
        if isinstance(part, wire.TextPart):
            yield Text(part.text)


def _content(content: wire.Content, path: str) -> Iterator[Text | Image | Document]:
    if content is None or isinstance(content, str):
        yield Text(content or "")
        return
    for number, part in enumerate(content):
        if isinstance(part, wire.TextPart):
            yield Text(part.text)
            continue
        url = _url(part)
        if url is not None:
            yield Image(url, f"{path}.content[{number}]")
        else:
            yield Text(f"[content of type {clip(part.kind, 64)} is not supported here]")


def _url(part: wire.MediaPart) -> str | None:
    given = part.value.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    return url if isinstance(url, str) else None


def _tools(request: wire.ChatRequest) -> Iterator[Tool]:
    for tool in request.tools or ():
        function = tool.function
        if function is not None:
            parameters = _NO_PARAMETERS if function.parameters is None else function.parameters
            yield Tool(function.name, function.description, parameters, function.strict)


def _choice(request: wire.ChatRequest) -> ToolChoice | None:
    parallel = request.parallel_tool_calls
    if request.tool_choice is None:
        return None if parallel is None else ToolChoice(parallel=parallel)
    choice = request.choice
    if choice.named is not None:
        return ToolChoice(ToolMode.NAMED, choice.named, parallel)
    mode = ToolMode.REQUIRED if choice.mode == REQUIRED else ToolMode(choice.mode)
    allowed = None
    if choice.allowed is not None:
        names = function_names(request.tools)
        allowed = tuple(name for name in names if name in choice.allowed)
    return ToolChoice(mode, None, parallel, allowed)


def _reasoning(request: wire.ChatRequest) -> Reasoning:
    enabled = (request.chat_template_kwargs or {}).get("enable_thinking")
    return Reasoning(
        enabled=enabled if isinstance(enabled, bool) else None,
        budget_tokens=request.thinking.budget_tokens if request.thinking else None,
        effort=request.reasoning_effort,
    )


def _schema(request: wire.ChatRequest) -> dict[str, Any] | None:
    wanted = request.structured_format
    if wanted is None:
        return None
    return wanted.json_schema.schema if wanted.json_schema is not None else _JSON_OBJECT
