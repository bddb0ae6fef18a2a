"""What a reader of one tool call's body takes and gives."""

from __future__ import annotations

import enum
from typing import Protocol

import attrs


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

    state: BodyState
    started: bool  # the name has been told: the call can no longer become text

    def feed(self, text: str) -> list[CallPart]:
        """The parts of the call that *text* completes."""
        ...

    @property
    def rest(self) -> str:
        """What was fed beyond the end, once DONE."""
        ...
