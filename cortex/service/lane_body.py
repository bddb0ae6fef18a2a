"""The body of a request on the fast lane. `ChunkedBody` is sans-IO; `LaneBody` reads."""

from __future__ import annotations

import re

import attrs
import trio

from cortex.errors import BadRequest, PayloadTooLarge
from cortex.service.edge import BODY_SECONDS
from cortex.service.lane_head import Head
from cortex.service.link import Link

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MAX_CHUNK_LINE = 4 * 1024  # a chunk's size and extensions
MAX_TRAILER = 16 * 1024
# A size in hex, then extensions, which nobody has ever defined: ignored (RFC 9112 7.1.1).
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class BadChunk(Exception):
    """The bytes are no chunked body."""


class TooLarge(Exception):
    """The body is over its cap."""


@attrs.define(eq=False)
class ChunkedBody:
    """Takes a chunked body out of the bytes of a connection (RFC 9112 7.1). CRLF ends a line,
    nothing else does. Trailers are read and dropped."""

    limit: int
    content: bytearray = attrs.field(factory=bytearray, init=False)
    complete: bool = attrs.field(default=False, init=False)
    rest: bytes = attrs.field(default=b"", init=False)  # what follows the body, once complete
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _at: int = attrs.field(default=0, init=False)  # up to here the buffer has been taken
    _left: int = attrs.field(default=0, init=False)  # of the chunk that is being read
    _in_chunk: bool = attrs.field(default=False, init=False)
    _trailer: int = attrs.field(default=-1, init=False)  # bytes of trailers, once in them

    def feed(self, data: bytes) -> None:
        """Take *data*. `BadChunk`, `TooLarge`."""
        self._buffer += data
        while not self.complete and (self._chunk() if self._in_chunk else self._line()):
            pass
        if self.complete:
            self.rest = bytes(self._buffer[self._at :])
            self._buffer.clear()
        del self._buffer[: self._at]
        self._at = 0

    def _chunk(self) -> bool:
        """Take what there is of a chunk and of the CRLF behind it; False when more is needed."""
        part = self._buffer[self._at : self._at + self._left]
        self.content += part
        self._left -= len(part)
        self._at += len(part)
        end = self._buffer[self._at : self._at + 2]
        if self._left or end == b"" or end == b"\r":
            return False
        if end != b"\r\n":
            raise BadChunk("a chunk is longer than its size says")
        self._at += 2
        self._in_chunk = False
        return True

    def _line(self) -> bool:
        """Take a line: a chunk's size, or a trailer; False when more is needed."""
        end = self._buffer.find(b"\n", self._at)
        length = (len(self._buffer) if end < 0 else end) - self._at
        if length > MAX_CHUNK_LINE:
            raise BadChunk("a line within the chunks is too long")
        if end < 0:
            return False
        line = bytes(self._buffer[self._at : end])
        if not line.endswith(b"\r"):
            raise BadChunk("a line within the chunks does not end with CRLF")
        self._take_line(line[:-1])
        self._at = end + 1
        return True

    def _take_line(self, line: bytes) -> None:
        if self._trailer >= 0:
            self._trailer += len(line)
            if not line:
                self.complete = True
            elif not _FIELD.fullmatch(line) or self._trailer > MAX_TRAILER:
                raise BadChunk("a trailer is none, or too long")
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            raise BadChunk("a chunk's size is none")
        self._left = int(found[1], 16)
        if len(self.content) + self._left > self.limit:
            raise TooLarge
        if self._left == 0:
            self._trailer = 0
        else:
            self._in_chunk = True


@attrs.define(eq=False)
class LaneBody:
    """The edge's `BodyReader` over *link*; ``rest`` is what follows the body, once complete.

    *rest* is what came with the head."""

    link: Link
    head: Head
    limit: int
    rest: bytes
    complete: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.complete = self.head.length == 0

    async def read(self) -> bytes:
        if self.complete:
            return b""
        length = self.head.length
        if length is not None and length <= len(self.rest) and length <= self.limit:
            body, self.rest = self.rest[:length], self.rest[length:]
            self.complete = True
            return body
        if length is not None and length > self.limit:
            raise self._too_large()
        if self.head.expects_continue and not self.rest:
            await self.link.send(CONTINUE)
        try:
            with trio.fail_after(BODY_SECONDS):
                return await (self._chunked() if length is None else self._counted(length))
        except trio.TooSlowError:
            message = "the request body did not arrive in time"
            raise BadRequest(message, code="body_timeout") from None

    async def _counted(self, length: int) -> bytes:
        parts = bytearray(self.rest)
        while len(parts) < length:
            parts += await self.link.receive_more()
        self.rest = bytes(parts[length:])
        del parts[length:]
        self.complete = True
        return bytes(parts)

    async def _chunked(self) -> bytes:
        body = ChunkedBody(self.limit)
        data = self.rest
        try:
            while True:
                body.feed(data)
                if body.complete:
                    break
                data = await self.link.receive_more()
        except TooLarge:
            raise self._too_large() from None
        except BadChunk as exc:
            raise BadRequest(f"the request body is not framed: {exc}", code="bad_body") from exc
        self.rest = body.rest
        self.complete = True
        return bytes(body.content)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the request body is larger than {self.limit // (1 << 20)} MiB")
