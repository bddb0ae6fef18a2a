"""``GET /fleet/events``: the fleet as it is, then what happens to it, for as long as one listens.

A reader that comes back with the id of the last event it has seen (``Last-Event-ID``) gets what
came after it; any other begins with a snapshot, and so does one that fell behind the log, after
being told how many events it missed. Only here do events carry ids: no dialect's client reads this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import trio

from cortex.gateway.events import Batch, EventLog
from cortex.service.http import HttpRequest, Pace, StreamAnswer, Writer
from cortex.service.stream import ClientStalled
from cortex.wire import json, sse

Json = dict[str, Any]

_ID = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})")


@attrs.frozen(eq=False)
class EventStream:
    """*snapshot* gives the fleet as it is now."""

    events: EventLog
    snapshot: Callable[[], Json]

    def answer(self, request: HttpRequest, pace: Pace) -> StreamAnswer:
        """The stream to *request*. It ends when the client goes, or with the log."""

        async def produce(writer: Writer) -> None:
            number = self._resumed(request.headers.get("last-event-id", ""))
            try:
                await writer.commit()
                await self._tell(writer, number)
            except (ClientStalled, trio.BrokenResourceError):
                pass  # nobody reads any more

        return StreamAnswer(produce, pace, filler=lambda: sse.KEEP_ALIVE)

    async def _tell(self, writer: Writer, number: int | None) -> None:
        if number is None:
            number = await self._write_snapshot(writer)
        while (batch := await self.events.wait_since(number)) is not None:
            if batch.missed:
                missed = json.dumps({"kind": "missed", "count": batch.missed})
                await writer.write(sse.event_frame("missed", missed))
                number = await self._write_snapshot(writer)
            elif batch.events:
                await writer.write(self._frames(batch))
                number = batch.events[-1].number

    def _resumed(self, last_id: str) -> int | None:
        """The number to go on after; None for an id that is none, or another process's."""
        found = _ID.fullmatch(last_id.strip())
        if found is None or found[1] != self.events.life or int(found[2]) > self.events.last:
            return None
        return int(found[2])

    async def _write_snapshot(self, writer: Writer) -> int:
        number = self.events.last
        body = json.dumps({"kind": "snapshot", **self.snapshot()})
        await writer.write(sse.numbered_frame(self._id(number), "snapshot", body))
        return number

    def _frames(self, batch: Batch) -> bytes:
        return b"".join(
            sse.numbered_frame(
                self._id(event.number),
                event.kind,
                json.dumps({"kind": event.kind, "at": round(event.at, 3), **event.fields}),
            )
            for event in batch.events
        )

    def _id(self, number: int) -> str:
        return f"{self.events.life}-{number}"
