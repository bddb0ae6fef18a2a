"""A neuron's chat stream as an Anthropic message, for the relay."""

from __future__ import annotations

from cortex.errors import CortexError
from cortex.gateway.encoder import load_chunk
from cortex.gateway.observed import Observed
from cortex.translate.anthropic_blocks import BlockWriter
from cortex.translate.anthropic_stream import AnthropicEncoder
from cortex.translate.chat_reader import ChatReader
from cortex.translate.conversation import (
    Conversation,
    Event,
    Failed,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
)
from cortex.wire import sse

_OUTPUT = (TextDelta, ThinkingDelta, ToolCallStart, ToolCallDelta)


class MessageStream:
    """`Encoder` for ``/v1/messages``.

    ``message_start`` carries the prompt's count, which the neuron's first chunk brings; when that
    takes long, the first keep-alive is a ``message_start`` with a count of 0, corrected at the end.
    """

    def __init__(self, conversation: Conversation, message_id: str, request_id: str) -> None:
        self.observed = Observed()
        self.complete = False
        self.produced = False
        writer = BlockWriter(message_id, shown=conversation.reasoning.shown)
        self._encoder = AnthropicEncoder(conversation.model, writer, request_id)
        self._reader = ChatReader(prewarm=conversation.prewarm)

    @property
    def skims(self) -> tuple[str, ...]:
        # Thinking is signed, white space before a block is held back: only within a text block is
        # a piece of text copied and no more.
        return ("content",) if self._encoder.writer.in_text else ()

    def commit(self) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        return self._encoder.ping() or self._encoder.start()

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
