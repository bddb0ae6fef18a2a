"""An answer from a neuron, read off its connection and parsed by httptools.

Nothing in it is trusted: how long its head may be, how much may come without anything of its body,
and how long it may be silent are bounded, and what is not HTTP ends the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import httptools
import trio

from cortex.errors import UpstreamError
from cortex.gateway.connection import Connection, Lost

# Of a head, interim ones included; of chunk extensions or trailers without a byte of the body.
MAX_HEAD_BYTES = 64 * 1024


class Refused(UpstreamError):
    """No connection, or one that ended before an answer's first byte: safe to try elsewhere."""


class Broken(UpstreamError):
    """The answer ended early, stalled, or was no HTTP."""


class UpstreamAnswer:
    """httptools' callbacks and the reader of one answer."""

    def __init__(self, connection: Connection, stall_seconds: float) -> None:
        self.connection = connection
        self.stall_seconds = stall_seconds
        self.status = 0
        self.complete = False
        self.reusable = False  # whether the connection may carry another call
        self.waiting_since = inf  # trio's clock; for whoever watches for stalls
        self.stalled = False
        self._head: list[tuple[bytes, bytes]] = []
        self._headers: dict[str, str] | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._head_complete = False
        self._until_close = True
        self._fruitless = 0  # bytes that came since the last ones of the body

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names; of repeated ones the last."""
        if self._headers is None:
            self._headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in self._head
            }
        return self._headers

    @property
    def at_hand(self) -> bool:
        """Whether the next `receive` has something to give without waiting."""
        return bool(self._parts)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer, to a request that nobody has sent
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # trailers tell nothing that is wanted
            self._head.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:  # an interim answer; the real one follows
            self._head.clear()
            return
        self._head_complete = True
        for name, _ in self._head:
            if name.lower() in (b"content-length", b"transfer-encoding"):
                self._until_close = False

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        if self.status >= 200 and not self.complete:
            self.complete = True
            # Asked now: the parser forgets how the body was delimited once it is past it.
            self.reusable = not self._until_close and bool(self._parser.should_keep_alive())

    # reading

    async def head(self) -> None:
        """Read until the head is there. `Refused` when the peer closed without a byte."""
        while not self._head_complete:
            data = await self._read()
            if not data:
                if not self._fruitless:
                    raise Refused("the neuron closed the connection without an answer")
                raise Broken("the neuron closed the connection within an answer's head")
            self._feed(data)

    async def receive(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises `Broken`."""
        parts = self._parts
        while not parts:
            if self.complete:
                return b""
            data = await self._read()
            if data:
                self._feed(data)
            elif self._until_close:
                self.complete = True
            else:
                raise Broken("the neuron closed the connection within an answer")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    async def read(self, limit: int) -> bytes:
        """The whole body, which must not exceed *limit* bytes. Raises `Broken`."""
        body = await self.receive()
        if not self.complete or self._parts:
            whole = bytearray(body)
            try:
                while len(whole) <= limit and (data := await self.receive()):
                    whole += data
                if len(whole) > limit:
                    raise Broken(f"the neuron's answer is larger than {limit} bytes")
                body = bytes(whole)
            finally:
                # An error keeps this frame, and what it holds, until the collector comes by.
                whole.clear()
        if len(body) > limit:
            raise Broken(f"the neuron's answer is larger than {limit} bytes")
        return body

    async def _read(self) -> bytes:
        self.waiting_since = trio.current_time()
        try:
            return await self.connection.receive()
        except Lost as exc:
            if self.stalled:
                raise Broken(f"the neuron was silent for {self.stall_seconds:g} s") from None
            if not self._fruitless and not self._head_complete:
                raise Refused("the connection to the neuron broke before an answer") from exc
            raise Broken("the connection to the neuron broke") from exc
        finally:
            self.waiting_since = inf

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.reusable = False
            if not self.complete:  # what comes after a whole answer does not make it another one
                raise Broken(f"the neuron's answer is not HTTP: {exc}") from exc
        self._fruitless = 0 if self._parts else self._fruitless + len(data)
        if self._fruitless > MAX_HEAD_BYTES and not (self._parts or self.complete):
            raise Broken("the neuron's answer has too long a head, or trailers without end")
