"""The server's side of a streamed response: commit once, write frames, fill silences.

Two tasks write to one stream, the one with the data and the one with the keep-alives; each write is
a whole frame, so that they cannot cut into each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import trio

from cortex.service.http import StreamAnswer

BUFFER = 64  # frames held for a client that reads more slowly than they come


class ClientStalled(Exception):
    """The client takes no data although its connection lives."""


@attrs.frozen
class Pace:
    """Seconds: until the status is sent although nothing came yet, between keep-alives, and how
    long a client may take no data."""

    commit_after: float = 5.0
    keep_alive: float = 2.0
    stall: float = 300.0


@attrs.define(eq=False)
class StreamWriter:
    """Writes one response. Use inside ``with``, which ends the response when it is left.

    The status is sent by `commit`, called by whoever comes first; what fails before that can still
    be a status, what fails after it has to be said in band.
    """

    pace: Pace
    opening: Callable[[], bytes]  # what begins the body; called once, on commit
    filler: Callable[[], bytes]  # a keep-alive, or nothing where none may stand now
    task_status: trio.TaskStatus[StreamAnswer]
    headers: Mapping[str, str] = attrs.field(factory=dict)
    committed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _send: trio.MemorySendChannel[bytes] = attrs.field(init=False)
    _answer: StreamAnswer = attrs.field(init=False)
    _written_at: float = attrs.field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, receive = trio.open_memory_channel[bytes](BUFFER)
        self._answer = StreamAnswer(receive, headers=self.headers)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._send.close()

    async def commit(self) -> None:
        """Send the status and the opening, unless that has been done."""
        if self.committed.is_set():
            return
        self.committed.set()
        self.task_status.started(self._answer)
        await self.write(self.opening())

    async def write(self, data: bytes) -> None:
        """Write whole frames. `ClientStalled` after the stall bound; BrokenResourceError when the
        response is gone."""
        if not data:
            return
        try:
            self._send.send_nowait(data)
        except trio.WouldBlock:
            try:
                with trio.fail_after(self.pace.stall):
                    await self._send.send(data)
            except trio.TooSlowError:
                raise ClientStalled from None
        self._written_at = trio.current_time()

    async def fill_silence(self) -> None:
        """Commit when the first data takes long, then write a keep-alive whenever nothing was
        written for a while. Runs until cancelled."""
        with trio.move_on_after(self.pace.commit_after):
            await self.committed.wait()
        await self.commit()
        while True:
            due = self._written_at + self.pace.keep_alive
            if trio.current_time() < due:
                await trio.sleep_until(due)
                continue
            self._written_at = trio.current_time()
            await self.write(self.filler())
