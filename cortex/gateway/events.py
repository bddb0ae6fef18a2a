"""What happens in the fleet, as numbered events: one log, any number of readers.

Publishing never waits: the newest `KEPT` events stay in a ring, and a reader that falls further
behind is told how many it missed. Kinds are lower-case words joined by ``_``: ``node_up``,
``node_down``, ``node_draining``, ``node_added``, ``node_removed``, ``model_loading``,
``model_loaded``, ``model_unloading``, ``model_unloaded``, ``model_recovering``, ``model_failed``
(all derived from the fleet's snapshots by `gateway.fleet_changes`), ``model_evicted`` (with its
reason, from whoever decides), ``pinned``, ``unpinned``, ``reloaded``,
``circuit_opened``, ``circuit_closed``, ``pull_started``, ``pull_ended``.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from cortex.service.watch import Watch

KEPT = 1024


@attrs.frozen
class Event:
    """``number`` counts from 1; ``at`` is in Unix seconds."""

    number: int
    kind: str
    at: float
    fields: dict[str, Any]


@attrs.frozen
class Batch:
    """Events in order; ``missed`` have gone out of the ring before the first of them."""

    events: tuple[Event, ...]
    missed: int


class EventLog:
    """Owner of the events. ``life`` tells one process's numbers from the next one's."""

    def __init__(self, kept: int = KEPT, *, clock: Callable[[], float] = time.time) -> None:
        self.life = secrets.token_hex(4)
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=kept)
        self._last = Watch(0)
        self._closed = False

    @property
    def last(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._last.value

    def publish(self, kind: str, **fields: Any) -> None:
        """Append an event; *fields* go out as JSON, those that are None are left out."""
        told = {name: value for name, value in fields.items() if value is not None}
        number = self._last.value + 1
        self._ring.append(Event(number, kind, self._clock(), told))
        self._last.set(number)

    def since(self, number: int) -> Batch:
        """What came after event *number*."""
        fresh = tuple(event for event in self._ring if event.number > number)
        return Batch(fresh, max(0, self.last - number - len(fresh)))

    async def wait_since(self, number: int) -> Batch | None:
        """What came after event *number*, once there is something; None when the log is closed."""
        while self.last <= number and not self._closed:
            await self._last.wait_changed()
        return None if self._closed else self.since(number)

    def close(self) -> None:
        """End every reader: a stream that never ends would hold up the drain."""
        self._closed = True
        self._last.set(self.last)
