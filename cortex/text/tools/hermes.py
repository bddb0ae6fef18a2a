"""The body of Hermes and Qwen tool calls: one JSON object with ``name`` and ``arguments``.

Arguments come out as the raw JSON text that the model writes, as soon as it writes it, when the
name stands before them (which is how models are trained); else at the end, whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from cortex.text.tools.body import BodyState, CallPart

_SPACE = " \t\r\n"
_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_AFTER_SCALAR = re.compile(r"[\s,}]")


class _Span:
    """Finds the end of one JSON value in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._scalar = False
        self._begun = False

    def end(self, text: str, at: int) -> tuple[int, bool]:
        """Scan *text* from *at*: the index up to which it belongs to the value, and whether it ends
        there. An index short of the text's end without an end: an escape is cut in two."""
        if not self._begun and at < len(text):
            self._begun = True
            self._scalar = text[at] not in '"{['
        if self._scalar:
            match = _AFTER_SCALAR.search(text, at)
            return (match.start(), True) if match else (len(text), False)
        while at < len(text):
            match = (_IN_STRING if self._in_string else _STRUCTURE).search(text, at)
            if match is None:
                return len(text), False
            at = match.end()
            if match[0] == "\\":
                if at == len(text):
                    return match.start(), False
                at += 1
            elif match[0] == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if match[0] in "{[" else -1
            if self._depth <= 0 and not self._in_string:
                return at, True
        return at, False


class HermesBody:
    """Reads ``{"name": ..., "arguments": {...}}``; ``parameters`` is taken for ``arguments``."""

    def __init__(self) -> None:
        self.state = BodyState.OPEN
        self.started = False
        self._text = ""  # not yet consumed
        self._step: Callable[[], bool] = self._object
        self._span = _Span()
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

    def _fail(self) -> bool:
        # Once the name is out there is no way back: what came is what the client gets.
        self.state = BodyState.DONE if self.started else BodyState.FAILED
        return False

    def _skip(self, characters: str = _SPACE) -> str:
        """Drop leading *characters*; the next one, "" where there is none yet."""
        self._text = self._text.lstrip(characters)
        return self._text[:1]

    def _object(self) -> bool:
        following = self._skip()
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
        self._span, self._value = _Span(), ""
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
            if not isinstance(value, str) or not value:
                return self._fail()
            self._name = self._name or value
        elif self._key in ("arguments", "parameters"):
            # A string holds JSON text already; null is a call without arguments.
            self._arguments = value if isinstance(value, str) else self._value
            if value is None:
                self._arguments = None
        self._step = self._member
        return True

    def _complete(self) -> bool:
        if not self.started:
            if self._name is None:
                return self._fail()
            self.started = True
            self._parts.append(CallPart(self._name, ""))
            self._parts.append(CallPart(None, self._arguments or "{}"))
        self.state = BodyState.DONE
        return False
