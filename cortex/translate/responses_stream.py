"""Answers as the event stream of the Responses API (`reference/api.md` 2.4), sans-IO.

response.created and response.in_progress, then items one after the other, then response.completed
or response.incomplete and ``[DONE]``; or, at any point, response.failed and nothing more. Events
are numbered from 0 without gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import orjson

from cortex.errors import CortexError
from cortex.translate.conversation import Event
from cortex.translate.responses_items import (
    CUSTOM,
    FUNCTION,
    MESSAGE,
    REASONING,
    Broke,
    Ended,
    Extended,
    ItemWriter,
    Step,
)
from cortex.translate.responses_object import ResponseObject
from cortex.wire import json
from cortex.wire.sse import DONE, KEEP_ALIVE, event_frame


def _delta(name: str, more: str = "") -> bytes:
    """The frame of a delta, written by hand: there is one for each token."""
    return (
        f"event: response.{name}.delta\n"
        f'data: {{"type":"response.{name}.delta","sequence_number":%d,"item_id":"%b",'
        f'"output_index":%d,{more}"delta":%b}}\n\n'
    ).encode()


_DELTAS = {
    MESSAGE: _delta("output_text", '"content_index":0,"logprobs":[],'),
    REASONING: _delta("reasoning_text", '"content_index":0,'),
    FUNCTION: _delta("function_call_arguments"),
    CUSTOM: _delta("custom_tool_call_input"),
}


@attrs.define(eq=False)
class ResponsesEncoder:
    """Encodes one answer. *now* gives the seconds since 1970.

    `feed` begins the response by itself where `start` has not; what comes after its end is nothing.
    """

    response: ResponseObject
    writer: ItemWriter
    now: Callable[[], int]
    started: bool = attrs.field(default=False, init=False)
    over: bool = attrs.field(default=False, init=False)
    _number: int = attrs.field(default=0, init=False)

    def start(self) -> bytes:
        """response.created and response.in_progress, once."""
        if self.started:
            return b""
        self.started = True
        body = self.response.shown("in_progress", [])
        return b"".join(
            self._event({"type": f"response.{name}", "response": body})
            for name in ("created", "in_progress")
        )

    def feed(self, event: Event) -> bytes:
        """The frames that *event* leads to."""
        if self.over:
            return b""
        head = self.start()
        steps = self.writer.feed(event)
        if len(steps) == 1 and not head:
            return self._frame(steps[0])
        return head + b"".join(map(self._frame, steps))

    def feed_all(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self.feed, events))

    def keep_alive(self) -> bytes:
        """A comment, which clients skip; nothing after the end."""
        return b"" if self.over else KEEP_ALIVE

    def fail(self, error: CortexError) -> bytes:
        """response.failed, after which there is nothing; nothing after the response's end."""
        if self.over:
            return b""
        head = self.start()
        self.over = self.writer.over = True
        body = self.response.shown("failed", self.writer.output, self.writer.usage, error=error)
        return head + self._event({"type": "response.failed", "response": body})

    def _frame(self, step: Step) -> bytes:
        match step:
            case Extended(kind, id_, index, text):
                number = self._next()
                return _DELTAS[kind] % (number, id_.encode(), index, orjson.dumps(text))
            case Ended(reason):
                self.over = True
                name = "response.completed" if reason is None else "response.incomplete"
                body = self.response.ended(self.writer, step, self.now())
                return self._event({"type": name, "response": body}) + DONE
            case Broke(error):
                return self.fail(error)
            case _:
                return self._event(step)

    def _event(self, body: dict[str, Any]) -> bytes:
        name = body["type"]
        numbered = {"type": name, "sequence_number": self._next(), **body}
        return event_frame(name, json.dumps(numbered))

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number
