"""A neuron's chat stream as a stream of the Responses API, for the relay."""

from __future__ import annotations

from cortex.gateway.event_encoder import EventEncoder
from cortex.translate.chat_reader import ChatReader
from cortex.translate.responses_stream import ResponsesEncoder


class ResponseStream(EventEncoder):
    """`Encoder` for ``/v1/responses``. The response is created as soon as the stream is committed:
    what it says then does not depend on the neuron."""

    def __init__(self, encoder: ResponsesEncoder) -> None:
        super().__init__(encoder, ChatReader())
        self._encoder = encoder

    @property
    def skims(self) -> tuple[str, ...]:
        return ()  # each event has a number of its own

    def commit(self) -> bytes:
        return self._encoder.start()

    def keep_alive(self) -> bytes:
        return self._encoder.keep_alive()
