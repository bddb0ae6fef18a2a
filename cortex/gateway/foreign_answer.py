"""Answers of servers of another make, brought to what the rest of the gateway reads.

Only what would be wrong otherwise is touched: the model's name, an end that is not marked, vectors
that are not packed. What a server adds of its own passes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import attrs

from cortex.errors import CortexError, UpstreamError
from cortex.gateway.upstream import Broken, UpstreamResponse
from cortex.wire import json, sse
from cortex.wire.embeddings import BASE64, packed


@attrs.define(eq=False)
class ForeignStream:
    """Rewrites one stream. Sans-IO: `feed` what comes, then `end`.

    The answer is whole when each choice that was begun has its finish reason; many servers then
    close without saying ``[DONE]``.
    """

    model: str  # the public id, which replaces the server's own name
    done: bool = attrs.field(default=False, init=False)
    _reader: sse.FrameReader = attrs.field(factory=sse.FrameReader, init=False)
    _open: set[int] = attrs.field(factory=set, init=False)
    _finished: set[int] = attrs.field(factory=set, init=False)

    @property
    def whole(self) -> bool:
        return bool(self._finished) and not self._open

    def feed(self, data: bytes) -> bytes:
        """The frames that *data* completes, as they are passed on. `UpstreamError` for one that
        never ends."""
        try:
            frames = self._reader.feed(data)
        except sse.FrameTooLong as exc:
            raise UpstreamError("the neuron sent too long an event") from exc
        return b"".join(map(self._frame, frames))

    def end(self) -> bytes:
        """What marks the end where the server did not and its answer is whole; else nothing."""
        if self.done or not self.whole:
            return b""
        self.done = True
        return sse.DONE

    def _frame(self, frame: sse.Frame) -> bytes:
        if frame.data is None:
            return frame.raw
        if frame.data.strip() == b"[DONE]":
            self.done = True
            return sse.DONE
        try:
            chunk = json.loads(frame.data)
        except CortexError:
            return frame.raw  # whoever reads it will say so
        if not isinstance(chunk, dict):
            return frame.raw
        self._look(chunk.get("choices"))
        if "model" not in chunk or chunk["model"] == self.model:
            return frame.raw
        chunk["model"] = self.model
        return sse.data_frame(json.dumps(chunk))

    def _look(self, choices: Any) -> None:
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            index = index if type(index) is int else 0
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:  # some say "" where others say null
                self._finished.add(index)
                self._open.discard(index)
            elif index not in self._finished:
                self._open.add(index)


def answer_of(data: bytes, model: str, *, pack: bool) -> bytes:
    """A whole answer under the public name *model*; *pack*: its vectors are wanted as base64."""
    try:
        answer = json.load_object(data)
    except CortexError:
        return data  # whoever reads it will say so
    answer["model"] = model
    if pack:
        _pack(answer.get("data"))
    return json.dumps(answer)


def _pack(entries: Any) -> None:
    for entry in entries if isinstance(entries, list) else ():
        vector = entry.get("embedding") if isinstance(entry, dict) else None
        if isinstance(vector, list):
            try:
                entry["embedding"] = packed(array("f", vector))
            except (TypeError, OverflowError) as exc:
                raise UpstreamError("the neuron sent a vector that is none") from exc


@attrs.define(eq=False)
class ForeignResponse:
    """`UpstreamResponse` over another one. A stream that breaks off when it is whole has ended."""

    _response: UpstreamResponse
    _stream: ForeignStream
    _pack: bool = False
    _over: bool = attrs.field(default=False, init=False)

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def complete(self) -> bool:
        return self._response.complete

    @property
    def at_hand(self) -> bool:
        return self._response.at_hand

    async def receive(self) -> bytes:
        while not self._over:
            try:
                data = await self._response.receive()
            except Broken:
                if not (self._stream.done or self._stream.whole):
                    raise
                data = b""
            self._over = not data
            out = self._stream.feed(data) if data else self._stream.end()
            if out:
                return out
        return b""

    async def read(self, limit: int) -> bytes:
        data = await self._response.read(limit)
        return answer_of(data, self._stream.model, pack=self._pack)


def pack_wanted(body: Mapping[str, Any]) -> bool:
    """Whether the request *body* asks for packed vectors."""
    return body.get("encoding_format") == BASE64
