"""The body of a call that is written in tags: a name, then keys and values as bare text.

Values are made JSON by the tool's schema. One that can only be a string comes out as it is
written; any other when it is whole, since its type is not known before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from cortex.text.stop import held_from
from cortex.text.tools.body import BodyState, CallPart
from cortex.text.tools.offer import Offer
from cortex.text.tools.typed_value import STRING, Types, quoted, value_json, value_types

MAX_NAME = 512  # characters
_NAME = re.compile(r"[^\s<>{}\"']+")


@attrs.frozen
class Tags:
    """How a family writes a call in tags::

        name_open NAME name_end (key_open KEY key_end value_open VALUE value_end)* end

    ``lines``: a value stands on lines of its own, the newlines around it are none of it. An
    ``end`` that is ``closer`` too is left for the machine to read.
    """

    name_open: str
    name_end: str
    key_open: str
    key_end: str
    value_open: str
    value_end: str
    end: str
    closer: str
    lines: bool

    @property
    def after_value(self) -> tuple[str, ...]:
        """What may follow a value: its end alone may stand within it."""
        return tuple(dict.fromkeys((self.key_open, self.end, self.closer)))


class TaggedCall:
    """Reads one call in *tags*."""

    def __init__(self, offer: Offer, *, tags: Tags) -> None:
        self.state = BodyState.OPEN
        self.started = False
        self._offer, self._tags = offer, tags
        self._text = ""  # not yet consumed
        self._step: Callable[[], bool] = self._open
        self._tool = ""
        self._keys = 0
        self._types: Types = None
        self._value: list[str] | None = None  # of a value that is told when it is whole
        self._value_begun = False
        self._ends = tuple(lead + tags.value_end for lead in (("\n", "") if tags.lines else ("",)))
        self._parts: list[CallPart] = []

    @property
    def rest(self) -> str:
        return self._text

    def feed(self, text: str) -> list[CallPart]:
        self._text += text
        while self.state is BodyState.OPEN and self._step():
            pass
        return self._take_parts()

    def finish(self, *, cut: bool) -> list[CallPart]:
        if cut or not self.started or self.state is not BodyState.OPEN:
            return []
        if self._step == self._in_value:
            at, past, _ = self._value_bounds()
            if past is None:
                return []  # the model ended within a value: nobody should take this for whole
            self._end_value(self._text[:at])
        if self._step == self._between:  # the model left out the end, and nothing else
            self._close()
        return self._take_parts()

    def _take_parts(self) -> list[CallPart]:
        parts, self._parts = self._parts, []
        return parts

    def _tell(self, text: str) -> None:
        if text:
            self._parts.append(CallPart(None, text))

    def _fail(self) -> bool:
        self.state = BodyState.FAILED
        return False

    def _open(self) -> bool:
        """Before the name."""
        self._text = self._text.lstrip()
        opener = self._tags.name_open
        if not self._text or not self._text.startswith(opener):
            return False if opener.startswith(self._text) else self._fail()
        self._text = self._text[len(opener) :]
        self._step = self._name
        return True

    def _name(self) -> bool:
        """The name, up to the first thing that may follow it."""
        ends = (self._tags.name_end, *self._tags.after_value)
        found = [at for end in ends if (at := self._text.find(end, 0, MAX_NAME)) >= 0]
        if not found:
            return self._fail() if len(self._text) >= MAX_NAME else False
        at = min(found)
        name = self._text[:at].strip().strip("\"'")
        if not _NAME.fullmatch(name) or not self._offer.takes(name):
            return self._fail()
        self._tool, self._text = name, self._text[at:].removeprefix(self._tags.name_end)
        self._step = self._first
        return True

    def _first(self) -> bool:
        """What follows the name decides whether this is a call."""
        self._text = self._text.lstrip()
        wanted = self._tags.after_value
        if self._text.startswith(wanted):
            self.started = True
            self._parts.append(CallPart(self._tool, ""))
            self._tell("{")
            self._step = self._between
            return True
        return False if any(w.startswith(self._text) for w in wanted) else self._fail()

    def _between(self) -> bool:
        """Between values; what is neither key nor end is passed over."""
        tags = self._tags
        places = {w: self._text.find(w) for w in tags.after_value}
        found = {at: w for w, at in places.items() if at >= 0}
        if not found:
            self._text = self._text[held_from(self._text, tags.after_value) :]
            return False
        at = min(found)
        if found[at] == tags.key_open:
            self._text = self._text[at + len(tags.key_open) :]
            self._step = self._key
            return True
        # Where the end is the closer too, or the end is left out, the closer is the machine's.
        past = at if found[at] == tags.closer else at + len(tags.end)
        self._text = self._text[past:]
        self._close()
        return False

    def _close(self) -> None:
        self._tell("}")
        self.state = BodyState.DONE

    def _key(self) -> bool:
        key, ended, rest = self._text.partition(self._tags.key_end)
        if self._tags.value_open:
            _, ended, rest = rest.partition(self._tags.value_open)
        if not ended:
            return False
        key, self._text = key.strip().strip("\"'"), rest
        self._types = value_types(*self._offer.schema(self._tool, key))
        self._value = None if self._types == STRING else []
        self._tell(f"{', ' if self._keys else ''}{quoted(key)}: ")
        self._keys += 1
        self._value_begun = False
        self._step = self._in_value
        return True

    def _in_value(self) -> bool:
        if not self._value_begun:
            if not self._text:
                return False
            self._value_begun = True
            if self._tags.lines:
                self._text = self._text.removeprefix("\n")
            if self._value is None:
                self._tell('"')
        at, past, sure = self._value_bounds()
        if past is None or not sure:
            self._more_value(self._text[:at])
            self._text = self._text[at:]
            return False
        piece, self._text = self._text[:at], self._text[past:]
        self._end_value(piece)
        return True

    def _value_bounds(self) -> tuple[int, int | None, bool]:
        """Up to where the text is surely of the value; where what follows the value's end begins,
        None while no end is in sight; and whether that end is sure to be it."""
        text, end = self._text, self._tags.value_end
        at = text.find(end)
        while at >= 0:
            following = text[at + len(end) :].lstrip()
            begin = at - 1 if self._tags.lines and text[at - 1 : at] == "\n" else at
            sure = following.startswith(self._tags.after_value)
            if sure or any(wanted.startswith(following) for wanted in self._tags.after_value):
                return begin, at + len(end), sure
            at = text.find(end, at + 1)
        return held_from(text, self._ends), None, False

    def _more_value(self, text: str) -> None:
        if self._value is None:
            self._tell(quoted(text)[1:-1])
        else:
            self._value.append(text)

    def _end_value(self, piece: str) -> None:
        if self._value is None:
            self._tell(quoted(piece)[1:-1] + '"')
        else:
            self._tell(value_json("".join(self._value) + piece, self._types))
        self._step = self._between
