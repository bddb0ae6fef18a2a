"""The body of a call that is one JSON object with ``name`` and ``arguments``.

Arguments come out as the raw JSON text that the model writes, as soon as it writes it, when the
name stands before them (which is how models are trained); else at the end, whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from cortex.text.tools.body import BodyState, CallPart
from cortex.text.tools.json_span import JsonSpan
from cortex.text.tools.offer import Offer

_SPACE = " \t\r\n"


class JsonCall:
    """Reads ``{"name": ..., "arguments": {...}}``; ``parameters`` is taken for ``arguments``.

    ``listed``: the object may stand in a list. ``bare``: no marker says that this is a call, so
    that an object without arguments is none.
    """

    def __init__(self, offer: Offer, *, listed: bool = False, bare: bool = False) -> None:
        self._offer = offer
        self._lead = _SPACE + "[" if listed else _SPACE
        self._bare = bare
        self.state = BodyState.OPEN
        self.started = False
        self._text = ""  # not yet consumed
        self._step: Callable[[], bool] = self._object
        self._span = JsonSpan()
        self._value = ""
        self._key = ""
        self._name: str | None = None
        self._arguments: str | None = None
        self._parts: list[CallPart] = []

    @property
    def rest(self) -> str:
        return self._text

    def feed(self, text: str) -> list[CallPart]:
        self._text += text
        while self.state is BodyState.OPEN and self._step():
            pass
        parts, self._parts = self._parts, []
        return parts

    def finish(self, *, cut: bool) -> list[CallPart]:
        return []  # a call cut off stays as far as it got, so that nobody takes it for whole

    def _fail(self) -> bool:
        # Once the name is out there is no way back: what came is what the client gets.
        self.state = BodyState.DONE if self.started else BodyState.FAILED
        return False

    def _skip(self, characters: str = _SPACE) -> str:
        """Drop leading *characters*; the next one, "" where there is none yet."""
        self._text = self._text.lstrip(characters)
        return self._text[:1]

    def _object(self) -> bool:
        following = self._skip(self._lead)
        if following != "{":
            return self._fail() if following else False
        self._text = self._text[1:]
        self._step = self._member
        return True

    def _member(self) -> bool:
        following = self._skip(_SPACE + ",")
        if following == "}":
            self._text = self._text[1:]
            return self._complete()
        if following != '"':
            return self._fail() if following else False
        self._begin(self._key_string)
        return True

    def _begin(self, step: Callable[[], bool]) -> None:
        self._span, self._value = JsonSpan(), ""
        self._step = step

    def _take(self) -> tuple[str, bool]:
        """The next piece of the value under way, and whether the value ends with it."""
        at, ended = self._span.end(self._text, 0)
        piece, self._text = self._text[:at], self._text[at:]
        return piece, ended

    def _key_string(self) -> bool:
        piece, ended = self._take()
        self._value += piece
        if not ended:
            return False
        try:
            self._key = json.loads(self._value)
        except ValueError:
            return self._fail()
        self._step = self._colon
        return True

    def _colon(self) -> bool:
        following = self._skip()
        if not following:
            return False
        if following != ":":
            return self._fail()
        self._text = self._text[1:]
        self._step = self._value_start
        return True

    def _value_start(self) -> bool:
        following = self._skip()
        if not following:
            return False
        if following in ",}":
            return self._fail()
        streams = self._key in ("arguments", "parameters") and self._name is not None
        if streams and following == "{" and not self.started:
            self.started = True
            self._parts.append(CallPart(self._name, ""))
            self._begin(self._streamed)
        else:
            self._begin(self._whole)
        return True

    def _streamed(self) -> bool:
        piece, ended = self._take()
        if piece:
            self._parts.append(CallPart(None, piece))
        if ended:
            self._step = self._member
        return ended

    def _whole(self) -> bool:
        piece, ended = self._take()
        self._value += piece
        if not ended:
            return False
        try:
            value = json.loads(self._value)
            if isinstance(value, str):
                value.encode()  # an escape of half a character is JSON, but no text to send
        except (ValueError, RecursionError):
            return self._fail()
        if self._key == "name":
            if not isinstance(value, str) or not value or not self._offer.takes(value):
                return self._fail()
            self._name = self._name or value
        elif self._key in ("arguments", "parameters"):
            # A string holds JSON text already; null is a call without arguments.
            self._arguments = value if isinstance(value, str) else self._value
            if value is None:
                self._arguments = "{}"
        self._step = self._member
        return True

    def _complete(self) -> bool:
        if not self.started:
            if self._name is None or (self._bare and self._arguments is None):
                return self._fail()
            self.started = True
            self._parts.append(CallPart(self._name, ""))
            self._parts.append(CallPart(None, self._arguments or "{}"))
        self.state = BodyState.DONE
        return False
