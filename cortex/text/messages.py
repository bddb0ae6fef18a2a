"""OpenAI chat messages as chat templates expect them. Pure; the caller's messages stay."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from cortex.errors import TemplateError, clip

# The names under which a message's reasoning is passed; the first is what templates read.
_SHORT = re.compile(r"[A-Za-z0-9]{9}")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@attrs.frozen
class MessageStyle:
    """What one template takes, found by trying it."""

    parts: bool = False  # content as a list of parts
    strings: bool = True  # content as a string
    knows_developer: bool = False  # the role
    call_content: str | None = None  # the content of a turn of tool calls only: None or ""
    short_ids: bool = False  # ids of calls have nine letters and digits, else it refuses them


def for_template(
    messages: Sequence[Mapping[str, Any]], style: MessageStyle
) -> list[dict[str, Any]]:
    """*messages* in *style*: string arguments become objects, developer becomes system, lists of
    text become strings where the template knows no lists. `TemplateError` for parts it cannot take.
    """
    return [_message(message, style, f"messages[{n}]") for n, message in enumerate(messages)]


def _message(message: Mapping[str, Any], style: MessageStyle, path: str) -> dict[str, Any]:
    adapted = dict(message)
    if adapted.get("role") == "developer" and not style.knows_developer:
        adapted["role"] = "system"
    calls = adapted.get("tool_calls")
    if isinstance(calls, list | tuple) and calls:
        adapted["tool_calls"] = [_call(call, style) for call in calls]
    else:
        adapted.pop("tool_calls", None)
    if style.short_ids and "tool_call_id" in adapted:
        adapted["tool_call_id"] = _short_id(adapted["tool_call_id"])
    adapted["content"] = _content(adapted.get("content"), style, path)
    if adapted["content"] in (None, ""):
        adapted["content"] = style.call_content if "tool_calls" in adapted else ""
    reasoning = next((adapted[f] for f in REASONING_FIELDS if adapted.get(f) is not None), None)
    if reasoning is not None:
        adapted = {"thinking": reasoning, **adapted, "reasoning_content": reasoning}
    return adapted


def _short_id(call_id: Any) -> str:
    """*call_id* as nine letters and digits, the same for a call and its result. Ids of other forms
    come from other models' turns, and from other dialects."""
    text = call_id if isinstance(call_id, str) else ""
    return text if _SHORT.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _call(call: Any, style: MessageStyle) -> Any:
    """A tool call with its arguments as an object, where they are one."""
    if not isinstance(call, Mapping):
        return call
    if style.short_ids:
        call = {**call, "id": _short_id(call.get("id"))}
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = arguments  # not JSON: a string it stays
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}


def _content(content: Any, style: MessageStyle, path: str) -> Any:
    if isinstance(content, str):
        if style.strings or not content:
            return content
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        return content
    texts = [_text_of(part, f"{path}.content[{n}]", style) for n, part in enumerate(content)]
    if style.parts and (not style.strings or None in texts):
        return [dict(part) if isinstance(part, Mapping) else part for part in content]
    return "\n".join(text for text in texts if text is not None)


def _text_of(part: Any, path: str, style: MessageStyle) -> str | None:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        if kind in ("text", "input_text", "output_text", "refusal"):
            text = part.get("text", part.get("refusal"))
            return text if isinstance(text, str) else ""
        if style.parts:
            return None
        raise TemplateError(f"this model takes no {clip(kind)} content", param=path)
    raise TemplateError("a content part is an object", param=path)


def with_leading_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """*messages* with all system messages made one, which leads."""
    systems = [m for m in messages if m.get("role") in ("system", "developer")]
    others = [dict(m) for m in messages if m.get("role") not in ("system", "developer")]
    texts = [text for m in systems if (text := _plain(m.get("content")))]
    if not texts:
        return others
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]


def system_in_user(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """*messages* with all system messages at the head of the first user message."""
    leading = with_leading_system(messages)
    if not leading or leading[0].get("role") != "system":
        return leading
    system, *others = leading
    for n, message in enumerate(others):
        if message.get("role") == "user":
            merged = f"{system['content']}\n\n{_plain(message.get('content'))}"
            return [*others[:n], {**message, "content": merged}, *others[n + 1 :]]
    return [{"role": "user", "content": system["content"]}, *others]


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (p if isinstance(p, str) else p.get("text") for p in content or () if p)
    return "\n".join(text for text in texts if isinstance(text, str))
