"""Answers as the output items of a response: one automaton for streams and whole answers.

Items are told one at a time, numbered from 0 without gaps: what belongs to a later one waits until
the one before it is complete. White space alone never becomes an item. A function call is told
while it is written, since its end says whether it is whole; a custom tool's call only when it is,
since the half of a text looks like a whole one.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import attrs
import orjson

from cortex.errors import CortexError
from cortex.translate.conversation import (
    Event,
    Failed,
    Finished,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from cortex.translate.responses_tools import INPUT
from cortex.translate.sealed_reasoning import seal

MESSAGE, REASONING = "message", "reasoning"
FUNCTION, CUSTOM = "function_call", "custom_tool_call"
_PREFIXES = {MESSAGE: "msg", REASONING: "rs", FUNCTION: "fc", CUSTOM: "ctc"}
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CUT = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CONTENT_FILTER: "content_filter",
}


@attrs.frozen
class Extended:
    """A piece of the text of the item with that ``kind``, ``id`` and place in the output."""

    kind: str
    id: str
    index: int
    text: str


@attrs.frozen
class Ended:
    """``reason`` says why the answer is incomplete; None when it is whole."""

    reason: str | None


@attrs.frozen
class Broke:
    error: CortexError


# A dict is an event of the protocol, whole but for its number.
Step = dict[str, Any] | Extended | Ended | Broke


@attrs.define(eq=False)
class _Item:
    kind: str
    id: str
    call_id: str = ""
    name: str = ""
    pieces: list[str] = attrs.field(factory=list)
    told: int = 0  # pieces
    index: int = -1  # in the output, once it was opened
    done: bool = False
    changed: bool = True  # since `whole` was last asked

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def spoken(self) -> bool:
        return self.kind in (MESSAGE, REASONING)

    def whole(self) -> bool:
        """Whether nothing can follow: text may end anywhere, arguments with their object."""
        if self.spoken:
            return True
        if not self.changed:
            return False
        self.changed = False
        try:
            return isinstance(orjson.loads(self.text), dict)
        except orjson.JSONDecodeError:
            return False


@attrs.define(eq=False)
class ItemWriter:
    """Turns events into steps. After `Ended` or `Broke` there are no more steps.

    ``output`` are the items that are complete, as the protocol shows them. *custom* names the tools
    whose calls are custom ones; *sealed* adds the reasoning in sealed form.
    """

    response_id: str
    custom: frozenset[str] = attrs.field(default=frozenset(), kw_only=True)
    sealed: bool = attrs.field(default=False, kw_only=True)
    output: list[dict[str, Any]] = attrs.field(factory=list, init=False)
    usage: Usage | None = attrs.field(default=None, init=False)
    over: bool = attrs.field(default=False, init=False)
    _items: list[_Item] = attrs.field(factory=list, init=False)
    _front: int = attrs.field(default=0, init=False)  # the item that is told now
    _held: str = attrs.field(default="", init=False)  # white space that may begin an item
    _held_kind: str = attrs.field(default="", init=False)
    _calls: dict[int, _Item] = attrs.field(factory=dict, init=False)
    _call_ids: set[str] = attrs.field(factory=set, init=False)

    def feed(self, event: Event) -> list[Step]:
        """The steps that *event* leads to."""
        if self.over:
            return []
        match event:
            case TextDelta(text):
                return self._say(MESSAGE, text)
            case ThinkingDelta(text):
                return self._say(REASONING, text)
            case ToolCallStart(index, id_, name):
                return self._call(index, id_, name)
            case ToolCallDelta(index, arguments):
                return self._arguments(index, arguments)
            case Usage():
                self.usage = event
            case Finished(reason):
                return self._finish(reason)
            case Failed(error):
                self.over = True
                return [Broke(error)]
        return []

    # What is said

    def _say(self, kind: str, text: str) -> list[Step]:
        if not text:
            return []
        last = self._items[-1] if self._items else None
        if last is not None and last.kind == kind and not last.done:
            last.pieces.append(text)
            return self._advance()
        held = self._held + text if self._held_kind == kind else text
        if text.isspace():  # and so was what is held
            self._held, self._held_kind = held, kind
            return []
        self._new(kind).pieces.append(held)
        return self._advance()

    def _call(self, index: int, id_: str, name: str) -> list[Step]:
        if index in self._calls:
            return []  # told twice
        item = self._new(CUSTOM if name in self.custom else FUNCTION)
        item.call_id, item.name = self._call_id(id_), name
        self._calls[index] = item
        return self._advance()

    def _arguments(self, index: int, arguments: str) -> list[Step]:
        item = self._calls.get(index)
        if item is None or item.done or not arguments:
            return []
        item.pieces.append(arguments)
        item.changed = True
        return self._advance()

    def _new(self, kind: str) -> _Item:
        self._held = self._held_kind = ""
        item = _Item(kind, f"{_PREFIXES[kind]}_{self._digest(len(self._items))}")
        self._items.append(item)
        return item

    def _digest(self, part: object) -> str:
        """An id's random part: the same for the same response, in a stream or whole."""
        seed = f"{self.response_id}:{part}".encode()
        return hashlib.blake2b(seed, digest_size=12).hexdigest()

    def _call_id(self, id_: str) -> str:
        """*id_* where clients can take it, else one of ours; distinct within the response."""
        if not _CALL_ID.fullmatch(id_) or id_ in self._call_ids:
            id_ = f"call_{self._digest(f'call {len(self._call_ids)}')}"
        self._call_ids.add(id_)
        return id_

    # What is told

    def _advance(self) -> list[Step]:
        """Tell what can be told: the front item as far as it goes, and those it held up."""
        steps: list[Step] = []
        while self._front < len(self._items):
            item = self._items[self._front]
            last = self._front == len(self._items) - 1
            if item.kind != CUSTOM:
                steps += self._tell(item)
            if last or not item.whole():
                break
            steps += self._close(item, "completed")
        return steps

    def _tell(self, item: _Item) -> list[Step]:
        steps = self._open(item) if item.index < 0 else []
        if item.told < len(item.pieces):
            text = "".join(item.pieces[item.told :])
            item.told = len(item.pieces)
            steps.append(Extended(item.kind, item.id, item.index, text))
        return steps

    def _open(self, item: _Item) -> list[Step]:
        item.index = len(self.output)
        shown = self._shown(item, "", "in_progress")
        steps: list[Step] = [_event("output_item.added", output_index=item.index, item=shown)]
        if item.spoken:
            steps.append(_event("content_part.added", **_place(item), part=_part(item.kind, "")))
        return steps

    def _close(self, item: _Item, status: str) -> list[Step]:
        """The end of *item*, which is the front one: its text as a whole, and itself."""
        self._front += 1
        item.done = True
        if item.kind == CUSTOM:
            text = _input(item.text)
            steps = self._open(item)
            if text:
                steps.append(Extended(CUSTOM, item.id, item.index, text))
        else:
            text, steps = item.text, self._tell(item)
        item.pieces = []
        place = _place(item)
        if item.spoken:
            more: dict[str, Any] = {"logprobs": []} if item.kind == MESSAGE else {}
            name = "output_text.done" if item.kind == MESSAGE else "reasoning_text.done"
            steps.append(_event(name, **place, text=text, **more))
            steps.append(_event("content_part.done", **place, part=_part(item.kind, text)))
        elif item.kind == CUSTOM:
            steps.append(_event("custom_tool_call_input.done", **place, input=text))
        else:
            steps.append(_event("function_call_arguments.done", **place, arguments=text))
        shown = self._shown(item, text, status)
        self.output.append(shown)
        steps.append(_event("output_item.done", output_index=item.index, item=shown))
        return steps

    def _shown(self, item: _Item, text: str, status: str) -> dict[str, Any]:
        """*item* as the protocol shows it; without its parts while it is in progress."""
        shown: dict[str, Any] = {"id": item.id, "type": item.kind, "status": status}
        parts = [] if status == "in_progress" else [_part(item.kind, text)]
        if item.kind == MESSAGE:
            return {**shown, "role": "assistant", "content": parts}
        if item.kind == REASONING:
            shown |= {"summary": [], "content": parts}
            if self.sealed:
                shown["encrypted_content"] = seal(text) if parts else None
            return shown
        member = "input" if item.kind == CUSTOM else "arguments"
        return {**shown, "call_id": item.call_id, "name": item.name, member: text}

    def _finish(self, reason: FinishReason) -> list[Step]:
        self.over = True
        cut = _CUT.get(reason)
        steps: list[Step] = []
        while self._front < len(self._items):
            steps += self._close_last(self._items[self._front], cut is not None)
        if not self.output:
            # An answer without any item looks like a failure to many clients.
            item = self._new(MESSAGE)
            self._front = len(self._items) - 1
            steps += self._close(item, "completed" if cut is None else "incomplete")
        return [*steps, Ended(cut)]

    def _close_last(self, item: _Item, cut: bool) -> list[Step]:
        """Close *item* at the answer's end, which was *cut* off or not."""
        if item.spoken:
            last = item is self._items[-1]
            return self._close(item, "incomplete" if cut and last else "completed")
        if item.whole():
            return self._close(item, "completed")
        if not cut:
            if item.kind == FUNCTION and not item.text.strip():
                item.pieces.append("{}")  # a call without arguments
            return self._close(item, "completed")
        if item.kind == CUSTOM:
            self._front += 1  # half a text: nothing tells it from a whole one
            return []
        return self._close(item, "incomplete")


def _event(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{name}", **fields}


def _place(item: _Item) -> dict[str, Any]:
    place: dict[str, Any] = {"item_id": item.id, "output_index": item.index}
    if item.spoken:
        place["content_index"] = 0
    return place


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == MESSAGE:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}


def _input(arguments: str) -> str:
    """A custom tool's text, out of the arguments of the function that stands for it."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments  # the model wrote the text itself
    if not isinstance(value, dict):
        return arguments
    text = value.get(INPUT, "" if not value else None)
    if isinstance(text, str):
        return text
    only = list(value.values())
    return only[0] if len(only) == 1 and isinstance(only[0], str) else arguments
