"""A neuron's chat stream as an Anthropic message, for the relay."""

from __future__ import annotations

from cortex.gateway.event_encoder import EventEncoder
from cortex.translate.anthropic_blocks import BlockWriter
from cortex.translate.anthropic_stream import AnthropicEncoder
from cortex.translate.chat_reader import ChatReader
from cortex.translate.conversation import Conversation


class MessageStream(EventEncoder):
    """`Encoder` for ``/v1/messages``.

    ``message_start`` carries the prompt's count, which the neuron's first chunk brings; when that
    takes long, the first keep-alive is a ``message_start`` with a count of 0, corrected at the end.
    """

    def __init__(self, conversation: Conversation, message_id: str, request_id: str) -> None:
        writer = BlockWriter(message_id, shown=conversation.reasoning.shown)
        self._encoder = AnthropicEncoder(conversation.model, writer, request_id)
        super().__init__(self._encoder, ChatReader(prewarm=conversation.prewarm))

    @property
    def skims(self) -> tuple[str, ...]:
        # Thinking is signed, white space before a block is held back: only within a text block is
        # a piece of text copied and no more.
        return ("content",) if self._encoder.writer.in_text else ()

    def commit(self) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        return self._encoder.ping() or self._encoder.start()
