"""Answers as Anthropic's event stream (`reference/api.md` 3.6), sans-IO.

message_start, then blocks one after the other, then message_delta and message_stop; or, at any
point, an error event and nothing more. Pings are possible from message_start on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import orjson

from cortex.errors import CortexError
from cortex.translate.anthropic_blocks import (
    BlockWriter,
    Broke,
    Closed,
    Ended,
    Extended,
    Opened,
    Step,
    empty_message,
    usage_body,
)
from cortex.translate.conversation import Event, Failed, Usage
from cortex.translate.errors import anthropic_frame
from cortex.wire import json
from cortex.wire.sse import event_frame

_PING = event_frame("ping", b'{"type":"ping"}')
_STOP = event_frame("message_stop", b'{"type":"message_stop"}')
# Written by hand: there is one for each token.
_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b_delta","%b":%b}}\n\n'
)
_MEMBERS = {
    "text": (b"text", b"text"),
    "thinking": (b"thinking", b"thinking"),
    "signature": (b"signature", b"signature"),
    "input_json": (b"input_json", b"partial_json"),
}


@attrs.define(eq=False)
class AnthropicEncoder:
    """Encodes one answer. *model* is the name to echo, *input_tokens* an estimate for the start.

    `feed` begins the message by itself where `start` has not; what comes after the end of the
    message, or after an error, is nothing.
    """

    model: str
    writer: BlockWriter
    request_id: str
    input_tokens: int = 0
    started: bool = attrs.field(default=False, init=False)
    over: bool = attrs.field(default=False, init=False)  # with message_stop or an error

    def start(self) -> bytes:
        """message_start, once."""
        if self.started or self.over:
            return b""
        self.started = True
        counted = self.writer.usage or Usage(self.input_tokens)
        counted = attrs.evolve(counted, completion_tokens=0, reasoning_tokens=None)
        usage = usage_body(counted, self.input_tokens)
        body = empty_message(self.writer.message_id, self.model, usage)
        return _event({"type": "message_start", "message": body})

    def feed(self, event: Event) -> bytes:
        """The frames that *event* leads to."""
        if self.over:
            return b""
        if isinstance(event, Usage) or (isinstance(event, Failed) and not self.started):
            head = b""  # a count is for message_start; an error needs no message
        else:
            head = self.start()
        steps = self.writer.feed(event)
        if len(steps) == 1 and not head:
            return self._frame(steps[0])
        return head + b"".join(map(self._frame, steps))

    def feed_all(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self.feed, events))

    def ping(self) -> bytes:
        """A keep-alive, where the protocol allows one; else nothing."""
        return _PING if self.started and not self.over else b""

    def fail(self, error: CortexError) -> bytes:
        """An error event, after which there is nothing; nothing after the message's end."""
        if self.over:
            return b""
        self.over = self.writer.over = True
        return anthropic_frame(error, self.request_id, model=self.model)

    def _frame(self, step: Step) -> bytes:
        match step:
            case Extended(index, kind, text):
                name, member = _MEMBERS[kind]
                return _DELTA % (index, name, member, orjson.dumps(text))
            case Opened(index, block):
                return _event(
                    {"type": "content_block_start", "index": index, "content_block": block}
                )
            case Closed(index):
                return _event({"type": "content_block_stop", "index": index})
            case Ended(stop_reason, stop_sequence):
                self.over = True
                delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
                usage = usage_body(self.writer.usage, self.input_tokens)
                return _event({"type": "message_delta", "delta": delta, "usage": usage}) + _STOP
            case Broke(error):
                return self.fail(error)


def _event(body: dict[str, Any]) -> bytes:
    return event_frame(body["type"], json.dumps(body))
