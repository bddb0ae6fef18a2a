"""A neuron's chat stream as a stream of the Responses API, for the relay."""

from __future__ import annotations

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
from cortex.translate.responses_stream import ResponsesEncoder
from cortex.wire import sse

_OUTPUT = (TextDelta, ThinkingDelta, ToolCallStart, ToolCallDelta)


class ResponseStream:
    """`Encoder` for ``/v1/responses``. The response is created as soon as the stream is committed:
    what it says then does not depend on the neuron."""

    def __init__(self, encoder: ResponsesEncoder) -> None:
        self.observed = Observed()
        self.complete = False
        self.produced = False
        self._encoder = encoder
        self._reader = ChatReader()

    @property
    def skims(self) -> tuple[str, ...]:
        return ()  # each event has a number of its own

    def commit(self) -> bytes:
        return self._encoder.start()

    def keep_alive(self) -> bytes:
        return self._encoder.keep_alive()

    def fail(self, error: CortexError) -> bytes:
        return self._encoder.fail(error)

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
        out = self._encoder.feed_all(events)
        self.complete = self._encoder.over
        return out
