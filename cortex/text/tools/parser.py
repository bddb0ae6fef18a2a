"""Tool calls out of text that comes in pieces, whatever their format."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from cortex.text.stop import held_from
from cortex.text.tools.body import BodyState, CallBody, CallPart
from cortex.text.tools.formats import ToolFormat
from cortex.text.tools.offer import Offer


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
    none comes out as text, closer and all; a call cut off by the end stays as far as it got.

    ``begins``: the text begins an answer, so that what stands there bare may be a call. Without
    ``parallel`` the first call ends it all.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        offer: Offer,
        call_id: Callable[[], str] | None = None,
        *,
        begins: bool = True,
        parallel: bool = True,
    ) -> None:
        self._format = tool_format
        exclusive = offer.exclusive or tool_format.at_start
        self._offer = attrs.evolve(offer, exclusive=exclusive)
        self._call_id = call_id or tool_format.call_id
        anywhere = tool_format.open + (() if tool_format.at_start else tool_format.bare)
        self._openers = tuple(sorted(anywhere, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._openers)) or r"(?!)")
        self._closers = tuple(sorted(tool_format.close, key=len, reverse=True))
        self._parallel = parallel
        self._begins = begins  # nothing but whitespace has come yet
        self._buffer = ""  # what is not settled: perhaps an opener, a closer, another call
        self._body: CallBody | None = None
        self._opener = ""  # what stands before the body and is no part of it
        self._raw: list[str] = []  # the body as written, until the call has started
        self._due = False  # a call is complete: its closer is due, or another call
        self.calls = 0
        self.ended = False  # the one call is complete: nothing more is told

    @property
    def in_call(self) -> bool:
        """A call is under way: what comes is its arguments, whatever they hold."""
        return self._body is not None and self._body.started

    def feed(self, text: str) -> list[Part]:
        """What *text* settles, in order."""
        parts: list[Part] = []
        self._buffer += text
        while not self.ended and self._step(parts):
            pass
        return parts

    def finish(self, *, cut: bool = False) -> list[Part]:
        """What was held back, when no more text comes. ``cut``: not because the model ended."""
        parts: list[Part] = []
        held, self._buffer = self._buffer, ""
        if self.ended:
            return []
        if self._due:  # what is held is what stands before the closer, and its beginning
            held, self._due = "", False
        if self._body is not None:
            self._take(self._body.finish(cut=cut), parts)
            if not self._body.started:
                held = self._opener + "".join(self._raw)
        self._body = None
        return [*parts, TextPart(held)] if held else parts

    def _step(self, parts: list[Part]) -> bool:
        """Move on by one state; False when more text is needed."""
        if not self._buffer:
            return False
        if self._body is not None:
            return self._in_body(self._body, parts)
        if self._due:
            return self._after_call()
        return self._outside(parts)

    def _outside(self, parts: list[Part]) -> bool:
        if self._begins and self._at_bare(parts):
            return True
        match = self._pattern.search(self._buffer)
        held = held_from(self._buffer, self._openers)
        if match is not None and match.start() < held:
            self._tell(self._buffer[: match.start()], parts)
            bare = match[0] in self._format.bare
            self._buffer = self._buffer[match.start() if bare else match.end() :]
            self._begin("" if bare else match[0])
            return True
        self._tell(self._buffer[:held], parts)
        self._buffer = self._buffer[held:]
        return False

    def _at_bare(self, parts: list[Part]) -> bool:
        """At the answer's begin: whether a call stands there without any opener."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if not self._format.at_start or not text.startswith(self._format.bare):
            self._begins = held_from(text, self._openers) == 0  # an opener may stand here yet
            return False
        self._tell(self._buffer[: len(self._buffer) - len(text)], parts)
        self._buffer = text
        self._begin("")
        return True

    def _begin(self, opener: str) -> None:
        self._begins = False
        self._body, self._raw, self._opener = self._format.body(self._offer), [], opener

    def _tell(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(TextPart(text))

    def _take(self, told: list[CallPart], parts: list[Part]) -> None:
        for part in told:
            new = part.name is not None
            self.calls += new
            call_id = self._call_id() if new else None
            parts.append(CallFragment(self.calls - 1, call_id, part.name, part.arguments))

    def _in_body(self, body: CallBody, parts: list[Part]) -> bool:
        text, self._buffer = self._buffer, ""
        if not body.started:
            self._raw.append(text)
        self._take(body.feed(text), parts)
        if body.state is BodyState.OPEN:
            return False
        self._body = None
        if body.state is BodyState.DONE:
            self._buffer, self._due = body.rest, True
            self.ended = not self._parallel
            return True
        # Only the opener is surely text: there may be a call within what follows it.
        raw = "".join(self._raw)
        sure = self._opener or raw[:1]
        self._tell(sure, parts)
        self._buffer = raw if self._opener else raw[1:]
        return True

    def _after_call(self) -> bool:
        due = self._buffer.lstrip(self._format.slack)
        for closer in self._closers:
            if due.startswith(closer):
                self._buffer, self._due = due[len(closer) :], False
                return True
            if closer.startswith(due):
                return False
        for beginning in self._format.again:
            if due and due.startswith(beginning):
                slack, self._buffer = self._buffer[: len(self._buffer) - len(due)], due
                self._due = False
                self._begin(slack)
                return True
            if beginning.startswith(due):
                return False
        self._due = False  # left out: what follows is text, or the next call
        return True
