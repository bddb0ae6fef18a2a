"""Answers as Anthropic's content blocks: one automaton for streams and whole messages.

Blocks are opened, extended and closed one at a time, numbered from 0 without gaps. White space
alone never becomes a block, and a tool call becomes one only when its arguments are a whole JSON
object: what is open on a client cannot be taken back when a call is cut off or malformed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Any

import attrs
import orjson

from cortex.errors import CortexError, UpstreamError
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
from cortex.wire import json

SIGNATURE_KEY = secrets.token_bytes(32)  # this process's; clients treat signatures as opaque
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "end_turn",  # without a call that could be told
    FinishReason.CONTENT_FILTER: "refusal",
}


@attrs.frozen
class Opened:
    """``block`` is the empty block, as ``content_block_start`` shows it."""

    index: int
    block: dict[str, Any]


@attrs.frozen
class Extended:
    """``kind`` is the type of the delta: text, thinking, input_json or signature."""

    index: int
    kind: str
    text: str


@attrs.frozen
class Closed:
    index: int


@attrs.frozen
class Ended:
    stop_reason: str
    stop_sequence: str | None


@attrs.frozen
class Broke:
    error: CortexError


Step = Opened | Extended | Closed | Ended | Broke


@attrs.define(eq=False)
class _Call:
    id: str
    name: str
    arguments: list[str] = attrs.field(factory=list)
    changed: bool = True  # since `whole` was last asked
    told: bool = False

    def whole(self) -> dict[str, Any] | None:
        """The arguments, when they are a complete JSON object."""
        self.changed = False
        try:
            value = orjson.loads("".join(self.arguments))
        except orjson.JSONDecodeError:
            return None
        return value if isinstance(value, dict) else None


@attrs.define(eq=False)
class BlockWriter:
    """Turns events into steps. After `Ended` or `Broke` there are no more steps.

    *shown* False leaves the reasoning's text out and keeps its signed block.
    """

    message_id: str
    shown: bool = attrs.field(default=True, kw_only=True)
    signature_key: bytes = attrs.field(default=SIGNATURE_KEY, kw_only=True, repr=False)
    usage: Usage | None = attrs.field(default=None, init=False)
    over: bool = attrs.field(default=False, init=False)
    _index: int = attrs.field(default=-1, init=False)
    _open: str | None = attrs.field(default=None, init=False)  # text or thinking
    _held: str = attrs.field(default="", init=False)  # white space that may begin a block
    _held_kind: str = attrs.field(default="", init=False)
    _signature: hmac.HMAC | None = attrs.field(default=None, init=False)
    _calls: dict[int, _Call] = attrs.field(factory=dict, init=False)
    _ids: set[str] = attrs.field(factory=set, init=False)

    @property
    def in_text(self) -> bool:
        """Whether a text block is open, which more text extends and does nothing else."""
        return self._open == "text" and not self.over

    def feed(self, event: Event) -> list[Step]:
        """The steps that *event* leads to."""
        if self.over:
            return []
        match event:
            case TextDelta(text):
                return self._extend("text", text)
            case ThinkingDelta(text):
                return self._extend("thinking", text)
            case ToolCallStart(index, id_, name):
                return self._call(index, id_, name)
            case ToolCallDelta(index, arguments):
                call = self._calls.get(index)
                if call is not None and not call.told:
                    call.arguments.append(arguments)
                    call.changed = True
            case Usage():
                self.usage = event
            case Finished(reason, stop_sequence):
                return self._finish(reason, stop_sequence)
            case Failed(error):
                self.over = True
                return [Broke(error)]
        return []

    def _extend(self, kind: str, text: str) -> list[Step]:
        if not text:
            return []
        if self._open == kind:
            return self._delta(text)
        held = self._held + text if self._held_kind == kind else text
        if text.isspace():  # and so was what is held
            self._held, self._held_kind = held, kind
            return []
        self._held = ""
        steps = [*self._close(), *self._whole_calls()]
        self._open = kind
        if kind == "thinking":
            self._signature = hmac.new(self.signature_key, digestmod=hashlib.sha256)
            steps.append(self._opened({"type": "thinking", "thinking": "", "signature": ""}))
        else:
            steps.append(self._opened({"type": "text", "text": ""}))
        return steps + self._delta(held)

    def _delta(self, text: str) -> list[Step]:
        if self._open == "thinking":
            if self._signature is not None:
                self._signature.update(text.encode())
            if not self.shown:
                return []
        return [Extended(self._index, self._open or "text", text)]

    def _opened(self, block: dict[str, Any]) -> Step:
        self._index += 1
        return Opened(self._index, block)

    def _close(self) -> list[Step]:
        """Close the text or thinking block, if there is one. Held white space is forgotten."""
        self._held = ""
        if self._open is None:
            return []
        steps: list[Step] = []
        if self._signature is not None:
            signature = "cx" + self._signature.hexdigest()
            steps.append(Extended(self._index, "signature", signature))
            self._signature = None
        self._open = None
        return [*steps, Closed(self._index)]

    def _call(self, index: int, id_: str, name: str) -> list[Step]:
        if index in self._calls:
            return []  # told twice
        steps = [*self._close(), *self._whole_calls()]
        self._calls[index] = _Call(id_, name)
        return steps

    def _whole_calls(self) -> list[Step]:
        """The blocks of the calls that are complete: others may go on after a later one began."""
        steps: list[Step] = []
        for call in self._calls.values():
            if call.changed and not call.told:
                arguments = call.whole()
                if arguments is not None:
                    steps += self._tool_use(call, arguments)
        return steps

    def _tool_use(self, call: _Call, arguments: dict[str, Any]) -> list[Step]:
        call.told = True
        block = {"type": "tool_use", "id": self._tool_id(call.id), "name": call.name, "input": {}}
        opened = self._opened(block)
        text = json.dumps(arguments).decode()
        return [opened, Extended(self._index, "input_json", text), Closed(self._index)]

    def _tool_id(self, id_: str) -> str:
        """*id_* where clients can take it, else one of ours; distinct within the message."""
        if not _TOOL_ID.fullmatch(id_) or id_ in self._ids:
            seed = f"{self.message_id}:{len(self._ids)}".encode()
            id_ = "toolu_" + hashlib.blake2b(seed, digest_size=12).hexdigest()
        self._ids.add(id_)
        return id_

    def _finish(self, reason: FinishReason, stop_sequence: str | None) -> list[Step]:
        self.over = True
        steps = [*self._close(), *self._whole_calls()]
        for call in self._calls.values():
            if not call.told:
                steps += self._broken_call(call, reason)
        if reason is FinishReason.STOP and stop_sequence is not None and not self._ids:
            return [*steps, Ended("stop_sequence", stop_sequence)]
        if self._ids and reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
            return [*steps, Ended("tool_use", None)]
        return [*steps, Ended(_STOP_REASONS[reason], None)]

    def _broken_call(self, call: _Call, reason: FinishReason) -> list[Step]:
        """A call without arguments is one; one cut off is dropped; a malformed one is text."""
        arguments = "".join(call.arguments)
        if reason in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER):
            return []
        if not arguments or arguments.isspace():
            return self._tool_use(call, {})
        text = json.dumps({"name": call.name, "arguments": arguments}).decode()
        opened = self._opened({"type": "text", "text": ""})
        return [opened, Extended(self._index, "text", text), Closed(self._index)]


def usage_body(usage: Usage | None, estimate: int) -> dict[str, Any]:
    """Tokens as Anthropic counts them: ``input_tokens`` are those not read from the cache.

    *estimate* stands for the prompt as long as upstream has not counted it.
    """
    counted = usage or Usage(estimate)
    body: dict[str, Any] = {
        "input_tokens": max(0, counted.prompt_tokens - counted.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached_tokens,
        "output_tokens": counted.completion_tokens,
    }
    if counted.reasoning_tokens is not None:
        body["output_tokens_details"] = {"thinking_tokens": counted.reasoning_tokens}
    return body


def empty_message(message_id: str, model: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A message to which nothing has been said yet."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "service_tier": "standard"},
    }


def message(
    events: Iterable[Event], writer: BlockWriter, *, model: str, estimate: int = 0
) -> dict[str, Any]:
    """The whole message that *events* make, or the error they end with.

    *model* is the name to echo; *estimate* the prompt's tokens where upstream does not count them.
    """
    content: list[dict[str, Any]] = []
    ended: Ended | None = None
    for step in (step for event in events for step in writer.feed(event)):
        match step:
            case Opened(_, block):
                content.append(dict(block))
            case Extended(index, "input_json", text):
                content[index]["input"] = orjson.loads(text)
            case Extended(index, kind, text):
                content[index][kind] += text
            case Ended():
                ended = step
            case Broke(error):
                raise error
    if ended is None:
        raise UpstreamError("the answer ended before it was complete")
    body = empty_message(writer.message_id, model, usage_body(writer.usage, estimate))
    told = {"stop_reason": ended.stop_reason, "stop_sequence": ended.stop_sequence}
    return {**body, "content": content, **told}
