"""What a reader of one tool call takes and gives."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from cortex.text.tools.offer import Offer


class BodyState(enum.Enum):
    """Where a body stands after what it has been fed."""

    OPEN = "open"  # wants more
    DONE = "done"  # the call is complete
    FAILED = "failed"  # this is no call; nothing has been told of it


@attrs.frozen
class CallPart:
    """A piece of a call: the ``name`` in the first (None in others), and raw JSON of arguments."""

    name: str | None
    arguments: str


class CallBody(Protocol):
    """Reads one call between opener and closer. ``rest`` is text after the call's end."""

    @property
    def state(self) -> BodyState: ...

    @property
    def started(self) -> bool:
        """The name has been told: the call can no longer become text."""
        ...

    def feed(self, text: str) -> list[CallPart]:
        """The parts of the call that *text* completes."""
        ...

    def finish(self, *, cut: bool) -> list[CallPart]:
        """What is still to be told when no more text comes. ``cut``: the model was not at its end,
        so that nothing may be closed on its behalf."""
        ...

    @property
    def rest(self) -> str:
        """What was fed beyond the end, once DONE."""
        ...


MakeBody = Callable[[Offer], CallBody]


class BodyByFirst:
    """The reader that the first character, whitespace apart, decides."""

    def __init__(self, offer: Offer, readers: Mapping[str, MakeBody], otherwise: MakeBody) -> None:
        self._offer, self._readers, self._otherwise = offer, readers, otherwise
        self._space = ""
        self._body: CallBody | None = None

    @property
    def state(self) -> BodyState:
        return BodyState.OPEN if self._body is None else self._body.state

    @property
    def started(self) -> bool:
        return self._body is not None and self._body.started

    @property
    def rest(self) -> str:
        return self._space if self._body is None else self._body.rest

    def feed(self, text: str) -> list[CallPart]:
        if self._body is None:
            text = self._space + text
            first = text.lstrip()[:1]
            if not first:
                self._space = text
                return []
            self._body = self._readers.get(first, self._otherwise)(self._offer)
        return self._body.feed(text)

    def finish(self, *, cut: bool) -> list[CallPart]:
        return [] if self._body is None else self._body.finish(cut=cut)
