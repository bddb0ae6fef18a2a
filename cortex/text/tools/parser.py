"""Tool calls out of text that comes in pieces, whatever their format."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import attrs

from cortex.text.stop import held_from
from cortex.text.tools.body import BodyState, CallBody
from cortex.text.tools.formats import ToolFormat


def new_call_id() -> str:
    """A call id as OpenAI shapes them."""
    return f"call_{secrets.token_hex(12)}"


@attrs.frozen
class TextPart:
    """Text that is no part of a call."""

    text: str


@attrs.frozen
class CallFragment:
    """A piece of call number ``index``: id and name come with the first, arguments add up."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Part = TextPart | CallFragment


class ToolCallParser:
    """Splits one stream of text into text and calls. Nothing is lost: what opens like a call and is
    none comes out as text, closer and all; a call cut off by the end stays as far as it got."""

    def __init__(self, tool_format: ToolFormat, call_id: Callable[[], str]) -> None:
        self._format = tool_format
        self._call_id = call_id
        self._buffer = ""  # outside a call: what may become an opener (or the closer just due)
        self._body: CallBody | None = None
        self._raw: list[str] = []  # the body as written, until the call has started
        self._closing = False  # a call is complete, its closer is due
        self.calls = 0

    @property
    def in_call(self) -> bool:
        """A call is under way: what comes is its arguments, whatever they hold."""
        return self._body is not None and self._body.started

    def feed(self, text: str) -> list[Part]:
        """What *text* settles, in order."""
        parts: list[Part] = []
        self._buffer += text
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, when no more text comes."""
        held, self._buffer = self._buffer, ""
        if self._body is not None and not self._body.started:
            held = self._format.open + "".join(self._raw)
        if self._closing:  # what is held is the beginning of the closer
            held, self._closing = "", False
        self._body = None
        return [TextPart(held)] if held else []

    def _step(self, parts: list[Part]) -> bool:
        """Move on by one state; False when more text is needed."""
        if not self._buffer:
            return False
        if self._body is not None:
            return self._in_body(self._body, parts)
        if self._closing:
            return self._at_closer()
        at = self._buffer.find(self._format.open)
        if at >= 0:
            if at:
                parts.append(TextPart(self._buffer[:at]))
            self._buffer = self._buffer[at + len(self._format.open) :]
            self._body, self._raw = self._format.body(), []
            return True
        held = held_from(self._buffer, (self._format.open,))
        if held:
            parts.append(TextPart(self._buffer[:held]))
            self._buffer = self._buffer[held:]
        return False

    def _in_body(self, body: CallBody, parts: list[Part]) -> bool:
        text, self._buffer = self._buffer, ""
        if not body.started:
            self._raw.append(text)
        for part in body.feed(text):
            new = part.name is not None
            self.calls += new
            call_id = self._call_id() if new else None
            parts.append(CallFragment(self.calls - 1, call_id, part.name, part.arguments))
        if body.state is BodyState.OPEN:
            return False
        self._body = None
        if body.state is BodyState.DONE:
            self._buffer, self._closing = body.rest, True
        else:
            # Only the opener is surely text: there may be a call within what follows it.
            parts.append(TextPart(self._format.open))
            self._buffer = "".join(self._raw)
        return True

    def _at_closer(self) -> bool:
        # Small models close one brace too many.
        due = self._buffer.lstrip(" \t\r\n}")
        close = self._format.close
        if due.startswith(close):
            self._buffer, self._closing = due[len(close) :], False
            return True
        if close.startswith(due):
            self._buffer = due
            return False
        self._closing = False  # left out: what follows is text, or the next call
        self._buffer = due
        return True
