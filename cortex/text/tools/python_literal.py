"""Values written as Python or JSON literals, read without evaluating anything."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

MAX_DEPTH = 64
_WORDS = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}
_WORD = re.compile(r"[A-Za-z]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_PLAIN = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "/": "/",
}
_CODES = {"x": 2, "u": 4, "U": 8}  # hexadecimal digits
_OCTAL = re.compile(r"[0-7]{1,3}")
_SURROGATES = range(0xD800, 0xE000)
_CLOSERS = {"[": "]", "(": ")", "{": "}"}


class LiteralReader:
    """Reads literals out of *text* from ``at`` on. Every method raises ValueError for what is
    none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> str:
        """Pass over whitespace; the next character, "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        """Pass over *character* where it is next."""
        if self.skip() != character:
            return False
        self.at += 1
        return True

    def value(self, depth: int = 0) -> Any:
        """The literal that is next, as the object JSON has for it: a tuple is a list."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        first = self.skip()
        if first in _PLAIN and first:
            return self._strings()
        if first == "{":
            return self._mapping(depth)
        if first in ("[", "("):
            return self._sequence(depth, _CLOSERS[first])
        if word := _WORD.match(self.text, self.at):
            if word[0] not in _WORDS:
                raise ValueError(f"no literal: {word[0]}")
            self.at = word.end()
            return _WORDS[word[0]]
        return self._number()

    def _number(self) -> int | float:
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise ValueError("no literal")
        self.at = match.end()
        try:
            return int(match[0])
        except ValueError:
            number = float(match[0])
        if number in (float("inf"), float("-inf")):
            raise ValueError("no finite number")
        return number

    def _sequence(self, depth: int, closer: str) -> Any:
        self.at += 1
        items: list[Any] = []
        comma = False
        while not self.take(closer):
            items.append(self.value(depth + 1))
            comma = self.take(",")
            if not comma and self.skip() != closer:
                raise ValueError("a list without its end")
        # A value in parentheses is that value.
        return items[0] if closer == ")" and len(items) == 1 and not comma else items

    def _mapping(self, depth: int) -> dict[str, Any]:
        self.at += 1
        members: dict[str, Any] = {}
        while not self.take("}"):
            key = self.value(depth + 1)
            if not self.take(":"):
                raise ValueError("a key without a value")
            members[key if isinstance(key, str) else json.dumps(key)] = self.value(depth + 1)
            if not self.take(",") and self.skip() != "}":
                raise ValueError("a mapping without its end")
        return members

    def _strings(self) -> str:
        """One string, or several that stand next to each other."""
        pieces = [self._string()]
        while self.skip() in ("'", '"'):
            pieces.append(self._string())
        return "".join(pieces)

    def _string(self) -> str:
        quote = self.text[self.at]
        self.at += 1
        pieces: list[str] = []
        while True:
            plain = _PLAIN[quote].match(self.text, self.at)
            assert plain is not None
            pieces.append(plain[0])
            self.at = plain.end() + 1
            ended_by = self.text[plain.end() : self.at]
            if ended_by == quote:
                return "".join(pieces)
            if not ended_by:
                raise ValueError("a string without its end")
            pieces.append(self._escape())

    def _escape(self) -> str:
        mark = self.text[self.at : self.at + 1]
        self.at += 1
        if mark in _CODES and mark:
            code = self._code(_CODES[mark])
            if code > sys.maxunicode:
                raise ValueError("no character")
            return self._pair(code) if code in _SURROGATES else chr(code)
        if octal := _OCTAL.match(self.text, self.at - 1):
            self.at = octal.end()
            return chr(int(octal[0], 8))
        if mark in _ESCAPES:
            return _ESCAPES[mark]
        if not mark:
            raise ValueError("a string without its end")
        return "\\" + mark  # as Python reads an escape it does not know

    def _code(self, digits: int) -> int:
        written = self.text[self.at : self.at + digits]
        if len(written) != digits or not re.fullmatch(r"[0-9A-Fa-f]+", written):
            raise ValueError("an escape without its digits")
        self.at += digits
        return int(written, 16)

    def _pair(self, high: int) -> str:
        """The character of two escapes, as JSON writes those beyond the first plane."""
        if high < 0xDC00 and self.text.startswith("\\u", self.at):
            self.at += 2
            low = self._code(4)
            if 0xDC00 <= low < 0xE000:
                return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
        raise ValueError("half a character")


def read_literal(text: str) -> Any:
    """The value of *text*, which is one literal and whitespace; ValueError where it is not."""
    reader = LiteralReader(text)
    value = reader.value()
    if reader.skip():
        raise ValueError("text after the literal")
    return value
