"""Where one JSON value ends in text that comes in pieces."""

from __future__ import annotations

import re

_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_AFTER_SCALAR = re.compile(r"[\s,}\]]")


class JsonSpan:
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
