"""The body of a call that is written as Python writes it: ``name(key="value", other=[1, None])``.

Nothing is evaluated: values are literals, arguments are named. A call is told when it is whole and
what follows it shows that it stands in a list of calls.
"""

from __future__ import annotations

import json
import re

from cortex.text.tools.body import BodyState, CallPart
from cortex.text.tools.offer import Offer
from cortex.text.tools.python_literal import LiteralReader

MAX_NAME = 512  # characters
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_KEY = re.compile(r"[\w.$-]+")
_BEFORE = " \t\r\n["
_STRUCTURE = re.compile(r"[\"'(){}\[\]]")
_IN_STRING = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}


class PythonCall:
    """Reads one call of a list of calls, with the bracket before it."""

    def __init__(self, offer: Offer) -> None:
        self.state = BodyState.OPEN
        self.started = False
        self._offer = offer
        self._text = ""
        self._name: str | None = None
        self._at = 0  # up to which the arguments have been scanned
        self._depth = 0
        self._quote = ""
        self._end = -1  # of the call, its parenthesis included

    @property
    def rest(self) -> str:
        return self._text

    def feed(self, text: str) -> list[CallPart]:
        self._text += text
        if self._name is None and not self._read_name():
            return []
        if self._end < 0 and not self._scan():
            return []
        following = self._text[self._end :].lstrip()[:1]
        if not following:
            return []
        return self._tell() if following in ",]" else self._fail()

    def finish(self, *, cut: bool) -> list[CallPart]:
        # The model left out the bracket that closes the list.
        return [] if cut or self._end < 0 or self.state is not BodyState.OPEN else self._tell()

    def _fail(self) -> list[CallPart]:
        self.state = BodyState.FAILED
        return []

    def _read_name(self) -> bool:
        self._text = self._text.lstrip(_BEFORE)
        match = _NAME.match(self._text)
        if match is None:
            if self._text:
                self._fail()
            return False
        following = self._text[match.end() : match.end() + 1]
        if not following and match.end() < MAX_NAME:
            return False
        if following != "(" or not self._offer.takes(match[0]):
            self._fail()
            return False
        self._name, self._text = match[0], self._text[match.end() :]
        return True

    def _scan(self) -> bool:
        """Find the parenthesis that closes the call."""
        while True:
            pattern = _IN_STRING[self._quote] if self._quote else _STRUCTURE
            match = pattern.search(self._text, self._at)
            if match is None:
                self._at = len(self._text)
                return False
            self._at = match.end()
            if match[0] == "\\":
                if self._at == len(self._text):
                    self._at -= 1
                    return False
                self._at += 1
            elif match[0] in "\"'":
                self._quote = "" if self._quote else match[0]
            else:
                self._depth += 1 if match[0] in "([{" else -1
                if self._depth == 0:
                    self._end = self._at
                    return True

    def _tell(self) -> list[CallPart]:
        try:
            arguments = _arguments(self._text[: self._end])
        except ValueError:
            return self._fail()
        self._text = self._text[self._end :]
        self.started = True
        self.state = BodyState.DONE
        written = json.dumps(arguments, ensure_ascii=False)
        return [CallPart(self._name, ""), CallPart(None, written)]


def _arguments(text: str) -> dict[str, object]:
    """The named arguments in *text*, parentheses included; ValueError where they are none."""
    reader = LiteralReader(text)
    reader.take("(")
    arguments: dict[str, object] = {}
    while not reader.take(")"):
        reader.skip()
        key = _KEY.match(text, reader.at)
        if key is None:
            raise ValueError("an argument without a name")
        reader.at = key.end()
        if not reader.take("="):
            raise ValueError("an argument without a value")
        arguments[key[0]] = reader.value()
        if not reader.take(",") and reader.skip() != ")":
            raise ValueError("arguments without their end")
    if reader.skip():
        raise ValueError("text after the arguments")
    return arguments
