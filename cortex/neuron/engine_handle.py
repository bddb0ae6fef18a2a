"""One loaded engine as the trio side sees it: requests in, streams of events out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from cortex.engine.request import Embedded, Event, Request, RequestFailed, TokenEvent
from cortex.errors import ContextLengthExceeded, CortexError, InternalError, Unavailable
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.jobs import Abort, Add, Close, OpenedEngine
from cortex.neuron.speed import Speed
from cortex.service import logs

if TYPE_CHECKING:
    from cortex.engine.engine import EngineStats

# Of a prompt that was computed, for its time to say how fast prompts are read.
LEAST_TOKENS = 8

log = logs.get("neuron.engine")


class EventStream(trio.abc.ReceiveChannel[list[Event]]):
    """The events of one request, a list a step; it ends after the last token.

    Reading raises the error that ended the stream when it ended otherwise: `DeviceLost`, or what
    the engine or its closing gave. Events that came before are delivered first.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        # Unbounded, because what can be in it is bounded by the request's max_tokens.
        self._send, self._receive = trio.open_memory_channel[list[Event]](math.inf)
        self._error: CortexError | None = None

    @property
    def ended(self) -> bool:
        """Whether no further event will be put in."""
        return self._send.statistics().open_send_channels == 0

    def put(self, events: list[Event]) -> None:
        """Hand over one step's events. Never blocks."""
        try:
            self._send.send_nowait(events)
        except trio.BrokenResourceError:
            self._send.close()  # the reader has left, and its abort is on the way
        else:
            if _is_last(events[-1]):
                self._send.close()

    def end(self, error: CortexError | None = None) -> None:
        if not self.ended:
            self._error = error
            self._send.close()

    async def receive(self) -> list[Event]:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            self._raise_error()
            raise

    def receive_nowait(self) -> list[Event]:
        """Like `receive`, but raises trio.WouldBlock when nothing is there yet."""
        try:
            return self._receive.receive_nowait()
        except trio.EndOfChannel:
            self._raise_error()
            raise

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error from self._error.__cause__

    async def aclose(self) -> None:
        self._receive.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._receive.close()
        self._send.close()


def _is_last(event: Event) -> bool:
    return isinstance(event, RequestFailed | Embedded) or event.finish is not None


def _ignore(_: Exception) -> None:
    pass


@attrs.define(eq=False)
class EngineHandle:
    """A loaded engine on its device thread. ``max_context`` in tokens, sizes in bytes, measured.

    *on_died* is called once when the engine fails by itself: its streams have ended by then.
    """

    _thread: DeviceThread
    _key: int
    _facts: OpenedEngine
    on_died: Callable[[Exception], None] = _ignore
    _clock: Callable[[], float] = time.monotonic  # the engine's
    speed: Speed = attrs.field(factory=Speed, init=False)
    delivered_at: float = attrs.field(default=-math.inf, init=False)  # its last token or vector
    _stepped_at: float | None = attrs.field(default=None, init=False)  # None: it was idle
    _streams: dict[str, EventStream] = attrs.field(factory=dict, init=False)
    _stats: EngineStats | None = attrs.field(default=None, init=False)
    _closed: CortexError | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._thread.attach(self._key, self)

    @property
    def max_context(self) -> int:
        return self._facts.max_context

    @property
    def kv_bytes(self) -> int:
        return self._facts.kv_bytes

    @property
    def weight_bytes(self) -> int:
        return self._facts.weight_bytes

    @property
    def memory(self) -> dict[str, int]:
        """What the engine keeps on its device: ledger row -> bytes."""
        return self._facts.memory

    def stats(self) -> EngineStats | None:
        """How the engine stood after its last step; None before the first."""
        return self._stats

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[EventStream]:
        """Run *request*; the events of each of its steps arrive as one list.

        A reader that is slow keeps no one waiting. Leaving the block before the end aborts the
        request, without waiting for the device. `ContextLengthExceeded` when the prompt does not
        fit; `DeviceLost` or another `Unavailable` when the engine is gone.
        """
        if self._closed is not None:
            raise _own(self._closed)
        if len(request.prompt) + (request.pooling is None) > self.max_context:
            raise _too_long(request, self.max_context)
        if request.id in self._streams:
            raise InternalError(f"the request id {request.id} is in use")
        stream = EventStream(len(request.prompt))
        self._streams[request.id] = stream
        add = Add(self._key, request)
        asked = logs.request_id.get()  # what the answer comes in knows of no request
        self._thread.submit(add, lambda _, error: self._added(request.id, stream, error, asked))
        try:
            yield stream
        finally:
            if self._streams.get(request.id) is stream:
                del self._streams[request.id]
                if not stream.ended:
                    add.cancelled = True
                    self._thread.submit(Abort(self._key, request.id))
            stream.close()

    def _added(
        self, request_id: str, stream: EventStream, error: Exception | None, asked: str | None
    ) -> None:
        if error is None or stream.ended:
            return
        if not isinstance(error, CortexError):
            log.error("request refused", exc=error, request=asked or request_id)
            failure = InternalError("the engine refused the request")
            failure.__cause__ = error
            error = failure
        stream.end(error)

    async def close(self, reason: CortexError) -> None:
        """End what still runs with *reason* and close the engine; returns when memory is free."""
        self._end(reason)
        await self._thread.ask(Close(self._key))

    # EngineSink

    def deliver(self, events: Sequence[Event], stats: EngineStats) -> None:
        self._stats = stats
        self._measure(events, stats)
        if any(not isinstance(event, RequestFailed) for event in events):
            self.delivered_at = self._clock()
        by_request: dict[str, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, its_events in by_request.items():
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put(its_events)

    def _measure(self, events: Sequence[Event], stats: EngineStats) -> None:
        now = self._clock()
        if self._stepped_at is not None:
            tokens = sum(isinstance(event, TokenEvent) for event in events)
            self.speed.decoded(tokens, now - self._stepped_at)
        self._stepped_at = now if stats.running or stats.waiting else None
        for event in events:
            stream = self._streams.get(event.request_id)
            first = event.first if isinstance(event, TokenEvent) else event
            if stream is not None and first is not None and not isinstance(first, RequestFailed):
                computed = stream.prompt_tokens - first.cached_tokens
                if computed >= LEAST_TOKENS:
                    self.speed.prefilled(computed, now - first.scheduled_at)

    def died(self, error: Exception) -> None:
        log.error("engine failed", exc=error)
        reason: CortexError
        if isinstance(error, CortexError):
            reason = error
        else:
            reason = InternalError("the engine failed while it served this request")
            reason.__cause__ = error
        self._end(reason)
        self.on_died(error)

    def lost(self, error: Exception) -> None:
        self._end(error if isinstance(error, CortexError) else Unavailable(str(error)))

    def _end(self, reason: CortexError) -> None:
        if self._closed is None:
            self._closed = reason
        self._thread.detach(self._key)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(_own(reason))


def _own(error: CortexError) -> CortexError:
    """*error* for one reader alone: raised in several tasks it would mix their tracebacks."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


def _too_long(request: Request, context: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"the prompt has {len(request.prompt)} tokens, the model holds {context}",
        extras={
            "prompt_tokens": len(request.prompt),
            "max_tokens": request.max_tokens,
            "context": context,
        },
    )
