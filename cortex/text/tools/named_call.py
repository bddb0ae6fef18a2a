"""The body of a call that is a name, a separator, and the arguments as one JSON object."""

from __future__ import annotations

import re

from cortex.text.tools.body import BodyState, CallPart
from cortex.text.tools.json_span import JsonSpan
from cortex.text.tools.offer import Offer

MAX_HEAD = 512  # characters before the arguments


class NamedCall:
    """Reads what *head* matches up to the first brace, and then the object, as it is written.

    The name is the head's group ``name``.
    """

    def __init__(self, offer: Offer, *, head: re.Pattern[str]) -> None:
        self.state = BodyState.OPEN
        self.started = False
        self._offer, self._head = offer, head
        self._text = ""
        self._span = JsonSpan()

    @property
    def rest(self) -> str:
        return self._text

    def feed(self, text: str) -> list[CallPart]:
        self._text += text
        parts: list[CallPart] = []
        if not self.started:
            at = self._text.find("{", 0, MAX_HEAD)
            if at < 0:
                if len(self._text) >= MAX_HEAD:
                    self.state = BodyState.FAILED
                return []
            match = self._head.fullmatch(self._text, 0, at)
            if match is None or not self._offer.takes(match["name"]):
                self.state = BodyState.FAILED
                return []
            self.started = True
            parts.append(CallPart(match["name"], ""))
            self._text = self._text[at:]
        at, ended = self._span.end(self._text, 0)
        if at:
            parts.append(CallPart(None, self._text[:at]))
        self._text = self._text[at:]
        if ended:
            self.state = BodyState.DONE
        return parts

    def finish(self, *, cut: bool) -> list[CallPart]:
        return []  # a call cut off stays as far as it got, so that nobody takes it for whole
