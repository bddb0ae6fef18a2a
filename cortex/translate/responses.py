"""OpenAI's Responses requests as conversations.

Lenient where a client could not recover (`reference/api.md` 2.4): items, parts and tools that only
the vendor knows are left out. Refused is what cannot be honoured without lying: what the server is
thought to have stored, media that would have to be fetched, a choice of a tool that is not there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from cortex.errors import BadRequest, NotFound, clip
from cortex.translate import responses_media
from cortex.translate.conversation import (
    Block,
    Conversation,
    Document,
    Image,
    Reasoning,
    Role,
    Sampling,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Turn,
)
from cortex.translate.responses_tools import INPUT, Tools, choice_of, tools_of
from cortex.translate.sealed_reasoning import unseal
from cortex.wire import json
from cortex.wire import responses as wire
from cortex.wire.converter import structure

SEALED = "reasoning.encrypted_content"
_SAMPLING = [field.name for field in attrs.fields(Sampling) if field.name != "stop"]
_JSON_OBJECT: dict[str, Any] = {"type": "object"}
_ROLES = {
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
}


@attrs.frozen(kw_only=True)
class Asked:
    """A request: its conversation, and what its answer needs to know beside it.

    ``dropped`` are the types of the items that were left out.
    """

    conversation: Conversation
    request: wire.ResponsesRequest
    tools: Tools
    dropped: tuple[str, ...] = ()

    @property
    def sealed(self) -> bool:
        """Whether reasoning is to be sealed for the next turn."""
        return SEALED in (self.request.include or ())


def read_response(body: dict[str, Any]) -> Asked:
    """What a ``/v1/responses`` body asks for, or `BadRequest`."""
    request = structure(body, wire.ResponsesRequest)
    conversation, tools = _conversation(request)
    return Asked(
        conversation=attrs.evolve(
            conversation,
            sampling=Sampling(**{name: getattr(request, name) for name in _SAMPLING}),
            max_tokens=request.max_output_tokens,
            stream=bool(request.stream),
            user=request.user,
        ),
        request=request,
        tools=tools,
        dropped=_dropped(request.input),
    )


def read_count(body: dict[str, Any]) -> Conversation:
    """The conversation of a ``/v1/responses/input_tokens`` body, or `BadRequest`."""
    return _conversation(structure(body, wire.CountRequest))[0]


def _conversation(request: wire.CountRequest) -> tuple[Conversation, Tools]:
    _check_stateless(request)
    system, turns = _split(tuple(_merged(_turns(request.input))))
    if request.instructions:
        system = (Text(request.instructions), *system)
    asked = request.tools or ()
    tools = tools_of(asked)
    conversation = Conversation(
        model=request.model,
        system=system,
        turns=turns,
        tools=tools.offered,
        tool_choice=choice_of(request.tool_choice, asked, tools, request.parallel_tool_calls),
        reasoning=Reasoning(effort=request.reasoning.effort if request.reasoning else None),
        schema=_schema(request.text),
        continues=False,
    )
    return conversation, tools


def _check_stateless(request: wire.CountRequest) -> None:
    """Raise `NotFound` for what only a server that stores responses could know."""
    kept = (
        ("previous_response_id", request.previous_response_id, "response", "previous_response"),
        ("conversation", request.conversation, "conversation", "conversation"),
        ("prompt", request.prompt, "prompt", "prompt"),
    )
    for param, value, what, code in kept:
        if value is None:
            continue
        id_ = value.get("id") if isinstance(value, dict) else value
        raise NotFound(
            f"{param}: no {what} '{clip(id_)}' is stored here; this server keeps none, send the "
            "whole input",
            param=param,
            code=f"{code}_not_found",
        )


def _schema(text: wire.TextConfig | None) -> dict[str, Any] | None:
    form = text.format if text is not None else None
    if form is None or form.type == "text":
        return None
    return form.schema if form.type == "json_schema" else _JSON_OBJECT


def _dropped(given: wire.Input) -> tuple[str, ...]:
    items = () if isinstance(given, str) else given
    return tuple(sorted({item.type for item in items if isinstance(item, wire.OtherItem)}))


def _split(turns: tuple[Turn, ...]) -> tuple[tuple[Text, ...], tuple[Turn, ...]]:
    """The texts of a leading system turn, and the turns after it."""
    if not turns or turns[0].role is not Role.SYSTEM:
        return (), turns
    return tuple(block for block in turns[0].blocks if isinstance(block, Text)), turns[1:]


def _turns(given: wire.Input) -> Iterator[Turn]:
    if isinstance(given, str):
        yield Turn(Role.USER, (Text(given),))
        return
    for index, item in enumerate(given):
        turn = _turn(item, f"input[{index}]")
        # An empty user turn still parts two assistant turns; the others say nothing.
        if turn is not None and (turn.blocks or turn.role is Role.USER):
            yield turn


def _merged(turns: Iterable[Turn]) -> Iterator[Turn]:
    """*turns* with neighbours of one role made one."""
    for role, same in itertools.groupby(turns, key=lambda turn: turn.role):
        yield Turn(role, tuple(block for turn in same for block in turn.blocks))


def _turn(item: wire.Item, path: str) -> Turn | None:
    match item:
        case wire.Message(role, content):
            return Turn(_ROLES[role], _message(content, f"{path}.content", _ROLES[role]))
        case wire.FunctionCall(call_id, name, arguments):
            return Turn(Role.ASSISTANT, (ToolUse(call_id, name, arguments or "{}"),))
        case wire.CustomCall(call_id, name, text):
            arguments = json.dumps({INPUT: text}).decode()
            return Turn(Role.ASSISTANT, (ToolUse(call_id, name, arguments),))
        case wire.CallOutput(call_id, output):
            result = ToolResult(call_id, tuple(_parts(output, f"{path}.output")))
            return Turn(Role.USER, (result,))
        case wire.ReasoningItem():
            thinking = _thinking(item)
            return Turn(Role.ASSISTANT, (Thinking(thinking),)) if thinking else None
        case wire.ItemReference(id_):
            raise BadRequest(
                f"{path}: no item '{clip(id_)}' is stored here; this server keeps none, send the "
                "item itself (store: false)",
                param=path,
                code="item_not_found",
            )
        case wire.OtherItem():
            return None


def _message(content: wire.Content, path: str, role: Role) -> tuple[Block, ...]:
    if role is Role.USER:
        return tuple(_parts(content, path))
    return tuple(Text(text) for text in _texts(content) if text)


def _texts(content: wire.Content) -> Iterator[str]:
    """The text in *content*; other parts have no place in a system prompt or an answer."""
    parts: Sequence[wire.Part] = (wire.TextPart(content),) if isinstance(content, str) else content
    for part in parts:
        if isinstance(part, wire.TextPart):
            yield part.text


def _parts(content: wire.Content, path: str) -> Iterator[Text | Image | Document]:
    """What a user, or a tool, said."""
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    for index, part in enumerate(content):
        at = f"{path}[{index}]"
        match part:
            case wire.TextPart(text):
                if text:
                    yield Text(text)
            case wire.ImagePart():
                yield responses_media.image(part, at)
            case wire.FilePart():
                yield responses_media.document(part, at)
            case wire.OtherPart("input_audio"):
                raise BadRequest(f"{at}: this model does not support audio input", param=at)
            case wire.OtherPart(kind):
                yield Text(f"[content of type {clip(kind, 64)} is not supported here]")


def _thinking(item: wire.ReasoningItem) -> str:
    """The reasoning's text: as we sealed it, else as it is shown; another's seal says nothing."""
    sealed = unseal(item.encrypted_content) if item.encrypted_content else None
    if sealed is not None:
        return sealed
    return "".join(_texts(item.content or ())) or "\n".join(_texts(item.summary or ()))
