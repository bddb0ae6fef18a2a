"""One task that watches the time for every open stream of a process."""

from __future__ import annotations

import itertools
from heapq import heappop, heappush
from math import inf

import attrs
import trio

from cortex.service import logs
from cortex.service.stream import StreamWriter

log = logs.get("service.pacer")


@attrs.define(eq=False)
class Pacer:
    """Ticks the writers given to it when they are due.

    A write moves only the writer's own clock, never the queue: a writer that is asked too early
    says when to come back, which costs one look per stream and keep-alive interval.
    """

    _queue: list[_Entry] = attrs.field(factory=list, init=False)
    _numbers: itertools.count[int] = attrs.field(factory=itertools.count, init=False)
    _nap: trio.CancelScope | None = attrs.field(default=None, init=False)

    def add(self, writer: StreamWriter) -> _Entry:
        """Tick *writer* from now on, until the entry returned is given to `remove`."""
        entry = _Entry(0.0, next(self._numbers), writer)
        self._look(entry, trio.current_time())
        if self._nap is not None and entry.due < self._nap.deadline:
            self._nap.deadline = entry.due
        return entry

    @property
    def waiting(self) -> int:
        """How many looks are planned."""
        return len(self._queue)

    def remove(self, entry: _Entry) -> None:
        entry.writer = None  # the entry itself leaves the queue when it is due

    async def run(self) -> None:
        """Tick until cancelled."""
        queue = self._queue
        while True:
            now = trio.current_time()
            while queue and queue[0].due <= now:
                self._look(heappop(queue), now)
            with trio.CancelScope(deadline=queue[0].due if queue else inf) as self._nap:
                await trio.sleep_forever()

    def _look(self, entry: _Entry, now: float) -> None:
        """Tick one writer. What it raises is its own stream's trouble and no other's."""
        if entry.writer is None:
            return
        try:
            entry.due = entry.writer.tick(now)
        except Exception as exc:
            log.error("a stream has no keep-alives any more", exc=exc)
            return
        if entry.due < inf:
            heappush(self._queue, entry)


@attrs.define(eq=False)
class _Entry:
    due: float
    number: int
    writer: StreamWriter | None

    def __lt__(self, other: _Entry) -> bool:
        return self.due < other.due or (self.due == other.due and self.number < other.number)
