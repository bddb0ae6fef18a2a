"""Whose turn it is: one model's requests that wait, of several keys and priorities. Pure.

Three rules, the first one that decides:

1. Priority: interactive before normal before batch. A request rises by one class for each
   `AGEING_SECONDS` that it waits, without end. So nobody is overtaken for ever: a request can be
   passed only by one that came less than (1 + classes between them) times `AGEING_SECONDS` later,
   which is a minute at most.
2. The key that holds the fewest seats. What is scarce is a seat's time, and a long prompt or answer
   holds its seat for longer; so keys come to share that time evenly, whatever their requests cost,
   without anybody counting tokens ahead.
3. The key whose last turn is longest ago, and within a key, who came first.

When the line is full, a newcomer takes the place of the last request of the key with the most, if
that has at least two more than its own key: one key may use the whole line, and no key can keep
another one out.
"""

from __future__ import annotations

from collections import deque

import attrs
import trio

AGEING_SECONDS = 20.0
RANKS = {"interactive": 0, "normal": 1, "batch": 2}


@attrs.define(eq=False)
class Waiter:
    """One request that waits since ``arrived``, in seconds. ``called`` is set when it is let in,
    or, with ``displaced``, when it has to go."""

    key: str
    rank: int
    arrived: float
    called: trio.Event = attrs.field(factory=trio.Event)
    displaced: bool = False

    def standing(self, now: float) -> int:
        """Its class after ageing; the lowest goes first."""
        return self.rank - int((now - self.arrived) // AGEING_SECONDS)


class FairLine:
    """Owns who waits, and knows how many seats each key holds."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, int], deque[Waiter]] = {}  # in order of arrival
        self._waiting: dict[str, int] = {}  # by key, as the next two; none is zero
        self._held: dict[str, int] = {}
        self._turns: dict[str, int] = {}  # when each key had its last turn
        self._turn = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def sit(self, key: str) -> None:
        """*key* takes a seat, whether it had to wait for it or not."""
        self._held[key] = self._held.get(key, 0) + 1
        self._turn += 1
        self._turns[key] = self._turn

    def leave(self, key: str) -> None:
        """*key* gives a seat back."""
        left = self._held[key] - 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]
            self._forget(key)

    def push(self, waiter: Waiter) -> None:
        self._lanes.setdefault((waiter.key, waiter.rank), deque()).append(waiter)
        self._waiting[waiter.key] = self._waiting.get(waiter.key, 0) + 1
        self._length += 1

    def remove(self, waiter: Waiter) -> bool:
        """Take *waiter* out; False when it is not in the line any more."""
        lane = self._lanes.get((waiter.key, waiter.rank), ())
        if waiter not in lane:
            return False
        self._take(waiter)
        return True

    def pop(self, now: float) -> Waiter:
        """Take out the one whose turn it is, to `sit`. The line must not be empty."""
        chosen = min(
            (lane[0] for lane in self._lanes.values()),
            key=lambda head: (
                head.standing(now),
                self._held.get(head.key, 0),
                self._turns.get(head.key, 0),
                head.arrived,
            ),
        )
        self._take(chosen)
        return chosen

    def displace_for(self, key: str) -> Waiter | None:
        """Take out the one who has to make room for a request of *key*; None when nobody has."""
        greedy = max(self._waiting, key=self._waiting.__getitem__, default=key)
        if self._waiting.get(greedy, 0) < self._waiting.get(key, 0) + 2:
            return None
        rank = max(rank for name, rank in self._lanes if name == greedy)
        last = self._lanes[greedy, rank][-1]
        self._take(last)
        return last

    def _take(self, waiter: Waiter) -> None:
        lane = self._lanes[waiter.key, waiter.rank]
        lane.remove(waiter)
        if not lane:
            del self._lanes[waiter.key, waiter.rank]
        self._length -= 1
        left = self._waiting[waiter.key] - 1
        if left:
            self._waiting[waiter.key] = left
        else:
            del self._waiting[waiter.key]
            self._forget(waiter.key)

    def _forget(self, key: str) -> None:
        """Who neither waits nor sits is a stranger again, so that nothing grows for ever."""
        if key not in self._held and key not in self._waiting:
            self._turns.pop(key, None)
