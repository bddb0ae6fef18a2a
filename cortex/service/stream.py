"""The server's side of a streamed response: commit once, write frames, fill silences.

The task that serves the request writes the data; whoever watches the time (`pacer.Pacer`, or
`keep_pace` for one stream) calls `StreamWriter.tick`. A tick never waits: what the client does not
take at once stays in the sink and goes out ahead of what comes next, so that a keep-alive and data
cannot cut into each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Protocol

import attrs
import trio

from cortex.service.http import Pace, StreamAnswer

__all__ = ["BUFFER", "ChannelSink", "ClientStalled", "Pace", "Sink", "StreamWriter", "keep_pace"]

BUFFER = 64  # writes held for a client that reads more slowly than they come


class ClientStalled(Exception):
    """The client takes no data although its connection lives."""


class Sink(Protocol):
    """Where one response goes. BrokenResourceError when the client has gone."""

    @property
    def pending(self) -> bool:
        """Whether something is kept that the client has not taken."""
        ...

    def begin(self, answer: StreamAnswer, opening: bytes) -> None:
        """Put the status, the headers and *opening* in front of the data. Sends nothing yet."""
        ...

    def take(self, data: bytes, *, last: bool = False) -> bool:
        """Send *data* as far as the client takes it now, keep the rest; whether nothing is left.

        *last* ends the response behind it.
        """
        ...

    async def drain(self) -> None:
        """Wait until what was kept has been taken."""
        ...

    def nudge(self) -> None:
        """Something was kept, and nobody waits for it to be taken."""
        ...


@attrs.define(eq=False)
class StreamWriter:
    """Writes one response to *sink*; the `Writer` that produces it gets."""

    answer: StreamAnswer
    sink: Sink
    committed: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)  # its end has been written
    lost: bool = attrs.field(default=False, init=False)  # the client takes nothing more
    _opened_at: float = attrs.field(factory=trio.current_time, init=False)
    _written_at: float = attrs.field(init=False)
    _waiting: bool = attrs.field(default=False, init=False)  # a write waits for the client

    def __attrs_post_init__(self) -> None:
        self._written_at = self._opened_at

    async def commit(self) -> None:
        if not self.committed:
            await self._send(b"", last=False)

    async def write(self, data: bytes, *, last: bool = False) -> None:
        if data or last:
            await self._send(data, last=last)

    async def finish(self) -> None:
        """End the response, unless that has been done or the client is lost."""
        if not self.ended and not self.lost:
            await self._send(b"", last=True)

    def tick(self, now: float) -> float:
        """Do what is due *now*; the time for the next tick, infinity when there is none."""
        pace = self.answer.pace
        if self.ended or self.lost:
            return inf
        if self._waiting:
            return now + pace.keep_alive
        if not self.committed:
            due = self._opened_at + pace.commit_after
            if now < due:
                return min(due, now + pace.keep_alive)
            # A status alone shows no client that we are alive.
            self._offer(b"" if self._begin() else self.answer.filler())
        due = self._written_at + pace.keep_alive
        if now < due:
            return due
        self._written_at = now
        if self.sink.pending:
            self._offer(b"")
        elif data := self.answer.filler():
            self._offer(data)
        return now + pace.keep_alive

    def _begin(self) -> bool:
        """Put the head in front; whether it opens the body too."""
        opening = self.answer.opening()
        self.committed = True
        self.sink.begin(self.answer, opening)
        self._written_at = trio.current_time()
        return bool(opening)

    def _offer(self, data: bytes) -> None:
        """Write without waiting, for a tick. That the client has gone is the producer's to find."""
        with suppress(trio.BrokenResourceError):
            if not self._take(data, last=False):
                self.sink.nudge()

    def _take(self, data: bytes, *, last: bool) -> bool:
        try:
            taken = self.sink.take(data, last=last)
        except trio.BrokenResourceError:
            self.lost = True
            raise
        if data:
            self._written_at = trio.current_time()
        return taken

    async def _send(self, data: bytes, *, last: bool) -> None:
        if self.lost:
            raise trio.BrokenResourceError("the client has gone")
        if self.ended:
            return
        if not self.committed:
            self._begin()
        if not self._take(data, last=last):
            await self._drain()
        self.ended = self.ended or last

    async def _drain(self) -> None:
        self._waiting = True
        try:
            with trio.fail_after(self.answer.pace.stall):
                await self.sink.drain()
        except trio.TooSlowError:
            self.lost = True
            raise ClientStalled from None
        except trio.BrokenResourceError:
            self.lost = True
            raise
        finally:
            self._waiting = False
        self._written_at = trio.current_time()


@attrs.define(eq=False)
class ChannelSink:
    """Into a memory channel, whose other end a server of somebody else's reads.

    ``started`` is called when the status may go out.
    """

    channel: trio.MemorySendChannel[bytes]
    started: Callable[[StreamAnswer], None]
    _kept: bytes = attrs.field(default=b"", init=False)

    @property
    def pending(self) -> bool:
        return bool(self._kept)

    def begin(self, answer: StreamAnswer, opening: bytes) -> None:
        self.started(answer)
        self._kept = opening

    def take(self, data: bytes, *, last: bool = False) -> bool:
        self._kept += data
        try:
            if self._kept:
                self.channel.send_nowait(self._kept)
        except trio.WouldBlock:
            return False
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError from exc
        self._kept = b""
        return True

    async def drain(self) -> None:
        kept, self._kept = self._kept, b""
        await self.channel.send(kept)

    def nudge(self) -> None:
        """It goes out with what comes next: a channel that is full keeps its reader busy."""


async def keep_pace(writer: StreamWriter) -> None:
    """Tick *writer* until its end or until cancelled."""
    due = writer.tick(trio.current_time())
    while due < inf:
        await trio.sleep_until(due)
        due = writer.tick(trio.current_time())
