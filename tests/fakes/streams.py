"""A client that keeps what it gets, and when."""

from __future__ import annotations

import attrs
import trio

from cortex.service.http import StreamAnswer
from cortex.service.stream import StreamWriter, keep_pace


@attrs.define(eq=False)
class RecordingSink:
    """Takes everything at once, unless it is *stalled* or *gone*."""

    stalled: bool = False
    gone: bool = False
    start: float = attrs.field(factory=trio.current_time)
    chunks: list[tuple[float, bytes]] = attrs.field(factory=list)
    begun: list[tuple[float, StreamAnswer]] = attrs.field(factory=list)
    ended: bool = False
    _kept: bytes = b""

    @property
    def now(self) -> float:
        return trio.current_time() - self.start

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.chunks)

    @property
    def pending(self) -> bool:
        return bool(self._kept)

    def begin(self, answer: StreamAnswer, opening: bytes) -> None:
        self.begun.append((self.now, answer))
        self._kept = opening

    def take(self, data: bytes, *, last: bool = False) -> bool:
        assert self.begun
        assert not self.ended
        if self.gone:
            raise trio.BrokenResourceError
        self._kept += data
        self.ended = last
        if self.stalled:
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        if self._kept:
            self.chunks.append((self.now, self._kept))
        self._kept = b""

    def nudge(self) -> None:
        pass

    async def drain(self) -> None:
        while self.stalled:
            await trio.sleep(0.5)
            if self.gone:
                raise trio.BrokenResourceError
        self._flush()


async def run_stream(answer: StreamAnswer, sink: RecordingSink) -> None:
    """Produce *answer* into *sink* as a server does; what it raises is raised."""
    writer = StreamWriter(answer, sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_pace, writer)
        try:
            await answer.produce(writer)
            await writer.finish()
        finally:
            nursery.cancel_scope.cancel()


async def collect(answer: StreamAnswer) -> bytes:
    """The whole body of *answer*."""
    sink = RecordingSink()
    await run_stream(answer, sink)
    return sink.body
