"""Answers on the fast lane: heads as bytes, and streams in chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus

import attrs
import trio

from cortex.service.http import StreamAnswer
from cortex.service.link import Link

LAST_CHUNK = b"0\r\n\r\n"

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@attrs.define
class _Date:
    """The Date header, made anew once a second."""

    second: int = -1
    line: str = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self.second:
            self.second, self.line = second, f"date: {formatdate(second, usegmt=True)}\r\n"
        return self.line


_date = _Date()


def answer_head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an answer, blank line included. ValueError for a header that holds a line end."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header of an answer holds a line end")
    status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return status_line + (lines + _date.now()).encode("latin-1", "replace") + b"\r\n"


@attrs.define(eq=False)
class LinkSink:
    """The `Sink` of a stream on *link*. *head* makes the answer's head when it begins.

    Without *chunked* the body ends with the connection. ``whole``: the end has been taken.
    """

    link: Link
    head: Callable[[StreamAnswer], bytes]
    chunked: bool
    whole: bool = attrs.field(default=False, init=False)
    _kept: bytes = attrs.field(default=b"", init=False)
    _ending: bool = attrs.field(default=False, init=False)
    _turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    @property
    def pending(self) -> bool:
        return bool(self._kept) or self._turn.locked()

    def begin(self, answer: StreamAnswer, opening: bytes) -> None:
        self._kept = self.head(answer) + self._framed(opening)

    def take(self, data: bytes, *, last: bool = False) -> bool:
        out = self._framed(data)
        if last:
            self._ending = True
            if self.chunked:
                out += LAST_CHUNK
        if self._kept:
            out = self._kept + out
        if self._turn.locked():  # a keep-alive is on its way
            self._kept = out
            return False
        sent = self.link.send_now(out) if out else 0
        if sent == len(out):
            self._kept = b""
            self.whole = self._ending
            return True
        self._kept = out[sent:]
        return False

    def nudge(self) -> None:
        self.link.send_later(self._flush)

    async def drain(self) -> None:
        async with self._turn:
            while self._kept:
                kept, self._kept = self._kept, b""
                await self.link.send(kept)
            self.whole = self._ending

    async def _flush(self) -> None:
        with suppress(trio.BrokenResourceError):  # the producer will find out
            await self.drain()

    def _framed(self, data: bytes) -> bytes:
        if not data or not self.chunked:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)
