"""The fast lane: the hot routes on our own HTTP/1.1, every other request on hypercorn's, one port.

A connection is read until its first request can be told apart. One to a hot route is served here,
and so are those behind it, in order, until one goes elsewhere: then the connection is handed over,
with the bytes already read, and stays there. A hot request runs in its connection's own task from
the head to the last byte; what watches over it (`Pacer`, `HangupWatch`) is shared by all.

Requests and answers are the edge's, so that a route behaves alike on either lane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import takewhile
from typing import Any

import attrs
import trio

from cortex.errors import CortexError, HeadTooLarge, RequestTimeout
from cortex.service import logs
from cortex.service.edge import Edge, response_headers
from cortex.service.hangup import HangupWatch
from cortex.service.http import Answer, HttpRequest, StreamAnswer, request_id_from
from cortex.service.lane_answer import LinkSink, answer_head
from cortex.service.lane_body import LaneBody
from cortex.service.lane_head import END, MAX_HEAD_BYTES, Head, HotPaths, read_head
from cortex.service.link import Link, Prefetched
from cortex.service.pacer import Pacer
from cortex.service.stream import StreamWriter

IDLE_SECONDS = 75.0  # between two requests
HEAD_SECONDS = 30.0  # from the first byte of a request's head to its last
ANSWER_SECONDS = 300.0  # for a client to take an answer

log = logs.get("service.lane")

Cold = Callable[[Any], Awaitable[None]]


@attrs.define(eq=False)
class Lane:
    """Serves connections. *cold* serves the stream of one whose requests are not hot."""

    edge: Edge
    hot: HotPaths
    cold: Cold
    pacer: Pacer
    hangups: HangupWatch
    draining: bool = attrs.field(default=False, init=False)
    # Connections between two requests, the one that has waited longest first, and since when.
    idle: dict[_Connection, float] = attrs.field(factory=dict, init=False)

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled. One task for all: a
        timeout around each wait would cost a request more than its parsing."""
        while True:
            now = trio.current_time()
            # Whatever becomes idle while this sleeps is due after it wakes.
            await trio.sleep_until(next(iter(self.idle.values()), now) + IDLE_SECONDS)
            for connection in self._idle_for(IDLE_SECONDS):
                connection.scope.cancel("idle for too long")

    def _idle_for(self, seconds: float) -> list[_Connection]:
        since = trio.current_time() - seconds
        return list(takewhile(lambda each: self.idle[each] <= since, self.idle))

    async def handle(self, link: Link) -> None:
        """Serve one connection to its end. What goes wrong with it is no other one's business."""
        connection = _Connection(self, link)
        try:
            await connection.run()
        except trio.BrokenResourceError:
            pass
        except Exception as exc:
            log.error("connection failed", exc=exc)
        finally:
            self.idle.pop(connection, None)
            link.close()

    def drain(self) -> None:
        """End idle connections now, the others with the answer under way."""
        self.draining = True
        for connection in self.idle:
            connection.scope.cancel("draining")


class _Connection:
    def __init__(self, lane: Lane, link: Link) -> None:
        self.lane = lane
        self.link = link
        self.scope = trio.CancelScope()
        self._buffer = b""  # bytes of the next request that have been read already
        self._head_due = 0.0  # when the head that is being read has to be there
        self._peer = link.peer

    async def run(self) -> None:
        link, hangups = self.link, self.lane.hangups
        link.gone = partial(self.scope.cancel, "the client has gone")
        sock = link.socket
        if sock is not None:
            hangups.watch(sock, link.gone)
        try:
            with self.scope:
                elsewhere = await self._serve()
        finally:
            if sock is not None:
                hangups.forget(sock)
        if not self.scope.cancelled_caught and elsewhere:
            await self.lane.cold(Prefetched(link.stream(), self._buffer))

    async def _serve(self) -> bool:
        """Serve hot requests; whether the next one is to be served elsewhere."""
        while not (self.lane.draining and not self._buffer):
            path = await self._next()
            if path is None:
                return bool(self._buffer)
            if not await self._exchange(path):
                return False
        return False

    async def _next(self) -> str | None:
        """Read until it is clear whose the next request is: its path, None when it is not ours. At
        the end of the connection nothing is left in the buffer."""
        if not self._buffer:
            idle = self.lane.idle
            idle[self] = trio.current_time()
            self._buffer = await self.link.receive()
            del idle[self]
            if not self._buffer:
                return None
        self._head_due = trio.current_time() + HEAD_SECONDS
        path = self.lane.hot.match(self._buffer)
        if path == "":
            path = await self._rest_of_line()
        return path

    async def _rest_of_line(self) -> str | None:
        """As `_next`, for a request line that comes in pieces. Where it never ends, hypercorn may
        say so: nothing tells what it would have been."""
        with trio.move_on_at(self._head_due):
            while True:
                path = self.lane.hot.match(self._buffer)
                if path != "":
                    return path
                self._buffer += await self.link.receive_more()
        self._buffer = b""
        await self.link.send(answer_head(408, {"connection": "close", "content-length": "0"}))
        return None

    async def _exchange(self, path: str) -> bool:
        """Serve the request to *path* that the buffer begins with; whether the connection can carry
        another one."""
        request = HttpRequest("POST", path, {}, b"", {}, "", self._peer)
        try:
            head = read_head(await self._head())
        except CortexError as exc:
            request.request_id = request_id_from({})
            logs.request_id.set(request.request_id)
            log.debug("bad head", cause=exc.message, peer=self._peer)
            await self._answer(self.lane.edge.refused(request, exc), request, close=True)
            await self.link.linger()
            return False
        request.headers, request.query = head.headers, head.query
        request.request_id = request_id_from(head.headers)
        logs.request_id.set(request.request_id)
        body = LaneBody(self.link, head, self.lane.edge.max_body_bytes, self._buffer)
        reply = await self.lane.edge.answer(request, body)
        self._buffer = body.rest
        close = reply.close or head.close or self.lane.draining
        if isinstance(reply.answer, StreamAnswer):
            close = await self._stream(reply.answer, request, head, close=close)
        else:
            await self._answer(reply.answer, request, close=close)
        if reply.close:
            await self.link.linger()
        return not close

    async def _head(self) -> bytes:
        """Take a request's head out of the buffer, reading what is missing."""
        end = self._buffer.find(END, 0, MAX_HEAD_BYTES)
        if end < 0:
            with trio.move_on_at(self._head_due):
                while len(self._buffer) < MAX_HEAD_BYTES and end < 0:
                    seen = max(0, len(self._buffer) - len(END))
                    self._buffer += await self.link.receive_more()
                    end = self._buffer.find(END, seen, MAX_HEAD_BYTES)
            if end < 0 and len(self._buffer) < MAX_HEAD_BYTES:
                raise RequestTimeout("the request's head did not arrive in time")
        if end < 0:
            raise HeadTooLarge(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
        end += len(END)
        head, self._buffer = self._buffer[:end], self._buffer[end:]
        return head

    async def _answer(self, answer: Answer, request: HttpRequest, *, close: bool) -> None:
        headers = response_headers(answer, request.request_id, close=close)
        data = answer_head(answer.status, headers) + answer.body
        sent = self.link.send_now(data)
        if sent < len(data):
            with trio.move_on_after(ANSWER_SECONDS) as scope:
                await self.link.send(data[sent:])
            if scope.cancelled_caught:
                log.info("client lost", cause="it takes no data")
                raise trio.BrokenResourceError("the client takes no data")

    async def _stream(
        self, answer: StreamAnswer, request: HttpRequest, head: Head, *, close: bool
    ) -> bool:
        """Run *answer*; whether the connection has to be closed behind it."""
        close = close or not head.chunked_answers

        def begin(answer: StreamAnswer) -> bytes:
            headers = response_headers(answer, request.request_id, close=close)
            if head.chunked_answers:
                headers["transfer-encoding"] = "chunked"
            return answer_head(answer.status, headers)

        sink = LinkSink(self.link, begin, head.chunked_answers)
        writer = StreamWriter(answer, sink)
        entry = self.lane.pacer.add(writer)
        try:
            failure = await self.lane.edge.stream(request, writer)
        finally:
            self.lane.pacer.remove(entry)
        if failure is not None:
            await self._answer(failure, request, close=close)
            return close
        return close or not sink.whole
