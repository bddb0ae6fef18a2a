"""What encoders of dialects with events of their own share: a neuron's chunks, read as events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cortex.errors import CortexError
from cortex.gateway.encoder import load_chunk
from cortex.gateway.observed import Observed
from cortex.translate.chat_reader import ChatReader
from cortex.translate.conversation import (
    Event,
    Failed,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
)
from cortex.wire import sse

_OUTPUT = (TextDelta, ThinkingDelta, ToolCallStart, ToolCallDelta)


class DialectEncoder(Protocol):
    """Events in, a dialect's frames out. ``over`` once everything that makes an end is written."""

    @property
    def over(self) -> bool: ...

    def feed_all(self, events: Iterable[Event]) -> bytes: ...

    def fail(self, error: CortexError) -> bytes: ...


class EventEncoder:
    """The greater part of an `Encoder`; the dialect's own adds how it opens and fills a silence."""

    def __init__(self, encoder: DialectEncoder, reader: ChatReader) -> None:
        self.observed = Observed()
        self.complete = False
        self.produced = False
        self._dialect = encoder
        self._reader = reader

    def fail(self, error: CortexError) -> bytes:
        return self._dialect.fail(error)

    def feed(self, frame: sse.Frame) -> bytes:
        if frame.data is None:
            return b""
        if frame.data == b"[DONE]":
            return self._encode(self._reader.end())
        chunk = load_chunk(frame.data)
        self.observed.take_usage(chunk.get("usage"))
        self.observed.take_timings(chunk.get("timings"))
        self.observed.take_finish(chunk.get("choices"))
        return self._encode(self._reader.read(chunk))

    def _encode(self, events: list[Event]) -> bytes:
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, _OUTPUT):
                self.produced = True
        out = self._dialect.feed_all(events)
        self.complete = self._dialect.over
        return out
