"""Who is admitted next: priority, then what was preempted, then callers in turn. No torch."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque

import attrs

from cortex.engine.sequence import Sequence


@attrs.define(eq=False)
class _Level:
    """The sequences of one priority."""

    preempted: list[Sequence] = attrs.field(factory=list)  # by arrival
    callers: OrderedDict[str, deque[Sequence]] = attrs.field(factory=OrderedDict)


class WaitingQueue:
    """Sequences that hold no blocks.

    Within a priority, preempted sequences come first, oldest first; then each caller's oldest, the
    callers taking turns, so that one caller's thousand requests delay another's one by one.
    """

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence) -> None:
        """A new sequence, behind its caller's others."""
        level = self._levels.setdefault(sequence.request.priority, _Level())
        level.callers.setdefault(sequence.request.caller, deque()).append(sequence)
        self._length += 1

    def push_preempted(self, sequence: Sequence) -> None:
        level = self._levels.setdefault(sequence.request.priority, _Level())
        insort(level.preempted, sequence, key=lambda s: s.arrival)
        self._length += 1

    def head(self) -> Sequence:
        """The sequence that is next; IndexError when nobody waits."""
        if not self._levels:
            raise IndexError("nobody waits")
        level = self._levels[max(self._levels)]
        if level.preempted:
            return level.preempted[0]
        return next(iter(level.callers.values()))[0]

    def pop(self) -> Sequence:
        """Take the head; its caller goes to the end of the turn."""
        sequence = self.head()
        level = self._levels[sequence.request.priority]
        caller = sequence.request.caller
        in_turn = not level.preempted
        self.remove(sequence)
        if in_turn and caller in level.callers:
            level.callers.move_to_end(caller)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take out *sequence*, which waits; ValueError when it does not."""
        level = self._levels.get(sequence.request.priority, _Level())
        if sequence in level.preempted:
            level.preempted.remove(sequence)
        else:
            caller = sequence.request.caller
            queue = level.callers.get(caller, deque())
            queue.remove(sequence)
            if not queue:
                del level.callers[caller]
        if not level.preempted and not level.callers:
            del self._levels[sequence.request.priority]
        self._length -= 1
