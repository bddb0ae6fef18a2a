"""The edge as an ASGI application, for hypercorn: every route that has no faster way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from quart import Response as QuartResponse
from quart import request as current_request
from quart.asgi import ASGIHTTPConnection
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from cortex.errors import BadRequest, CortexError, PayloadTooLarge
from cortex.service import logs
from cortex.service.edge import (
    BODY_SECONDS,
    MAX_BODY_BYTES,
    Edge,
    response_headers,
)
from cortex.service.http import (
    ONCE,
    Answer,
    ErrorRenderer,
    Guard,
    HttpRequest,
    Route,
    StreamAnswer,
    request_id_from,
)
from cortex.service.stream import BUFFER, ChannelSink, StreamWriter, keep_pace

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
DISCARDED = 64 * 1024  # bytes of an unwanted body that are read all the same
DISCARD_SECONDS = 0.25
VERSIONS = frozenset({"1.0", "1.1"})


class _Connection(TrioASGIHTTPConnection):
    """Hands each request the nursery that lives exactly as long as its response.

    quart-trio cancels that nursery on ``http.disconnect``, which hypercorn also sends from within
    the last write of a complete response: its own closing of the connection was then cancelled,
    and a client that waits for the close (``connection: close``) waited for the keep-alive timeout.
    Hence a disconnect counts only until the last write has begun.
    """

    _finishing = False

    async def __call__(self, receive: Any, send: Any) -> None:
        if self.scope["http_version"] in VERSIONS:
            await super().__call__(receive, send)
            return
        # The preface of an HTTP/2 that nobody has agreed upon, or a version that there is none of.
        await receive()  # hypercorn has not yet seen to the end of a request it has just begun
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Any, send: Any
    ) -> None:
        request.nursery = nursery

        async def watched_send(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._finishing = True
            await send(message)

        await super().handle_request(nursery, request, watched_send)

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._finishing:
            nursery.cancel_scope.cancel("the client has gone")


def make_app(
    name: str,
    routes: Iterable[Route],
    *,
    render_error: ErrorRenderer,
    render_error_for: Callable[[HttpRequest], ErrorRenderer] | None = None,
    guard: Guard | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> QuartTrio:
    """An ASGI application over an `Edge` of its own; see there for the arguments."""
    edge = Edge(
        routes,
        render_error=render_error,
        render_error_for=render_error_for,
        guard=guard,
        max_body_bytes=max_body_bytes,
    )
    return app_over(edge, name)


def app_over(edge: Edge, name: str) -> QuartTrio:
    """*edge* as an ASGI application."""
    app = QuartTrio(name, static_folder=None)
    app.asgi_http_class = _Connection
    app.config.update(
        MAX_CONTENT_LENGTH=edge.max_body_bytes, BODY_TIMEOUT=BODY_SECONDS, RESPONSE_TIMEOUT=None
    )
    # The path is ours to match: werkzeug would redirect `//v1//models`.
    app.url_map.merge_slashes = False

    async def view(path: str = "") -> QuartResponse:
        return await _respond(edge)

    for rule in ("/", "/<path:path>"):
        app.add_url_rule(
            rule, f"edge{rule}", view, methods=METHODS, provide_automatic_options=False
        )

    async def fallback(error: HTTPException) -> QuartResponse:
        incoming: Any = current_request
        request = _request(incoming)
        answer = edge.failed(request, CortexError(error.name, code="http_error"))
        told = Answer(answer.body, error.code or 400, answer.headers)
        return _response(told, request, close=True)

    app.register_error_handler(HTTPException, fallback)
    return app


class _Body:
    """The body as Quart collects it."""

    def __init__(self, incoming: Any, limit: int) -> None:
        self._incoming = incoming
        self._limit = limit
        headers = incoming.headers
        self.complete = (
            headers.get("content-length", "0").strip() == "0" and "transfer-encoding" not in headers
        )

    async def read(self) -> bytes:
        try:
            body: bytes = await self._incoming.get_data(cache=False)
        except RequestEntityTooLarge as exc:
            limit = self._limit // (1024 * 1024)
            raise PayloadTooLarge(f"the request body is larger than {limit} MiB") from exc
        except RequestTimeout as exc:
            raise BadRequest(
                "the request body did not arrive in time", code="body_timeout"
            ) from exc
        self.complete = True
        return body

    async def discard(self) -> None:
        """Read what is left of a body that nobody wants, if it is small and on its way.

        hypercorn still works on a body while its request is answered; where that ends the
        connection, the two may write to it at once.
        """
        length = self._incoming.content_length
        if not self.complete and length is not None and length <= DISCARDED:
            with trio.move_on_after(DISCARD_SECONDS):
                await self.read()


def _request(incoming: Any) -> HttpRequest:
    headers = {name.lower(): value for name, value in incoming.headers.items()}
    return HttpRequest(
        method=incoming.method,
        path=incoming.path,
        headers=headers,
        body=b"",
        query=incoming.args.to_dict(),
        request_id=request_id_from(headers),
        peer=incoming.remote_addr,
    )


async def _respond(edge: Edge) -> QuartResponse:
    incoming: Any = current_request
    request = _request(incoming)
    logs.request_id.set(request.request_id)
    for name in ONCE:
        if name in request.headers and len(incoming.headers.getlist(name)) > 1:
            error = BadRequest(f"there is more than one {name} header", code="bad_request_head")
            return _response(edge.refused(request, error), request, close=True)
    body = _Body(incoming, edge.max_body_bytes)
    reply = await edge.answer(request, body)
    with suppress(CortexError):
        await body.discard()
    if isinstance(reply.answer, StreamAnswer):
        response: QuartResponse = await incoming.nursery.start(_stream, edge, request, reply.answer)
        return response
    return _response(reply.answer, request, close=not body.complete)


class CutShort(Exception):
    """A stream failed behind its status: the connection has to end without the body's end."""


@attrs.define(eq=False)
class _Frames:
    """The body of a streamed response, as Quart iterates it."""

    channel: trio.MemoryReceiveChannel[bytes]
    writer: StreamWriter | None = None

    def __aiter__(self) -> _Frames:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.channel.receive()
        except trio.EndOfChannel:
            if self.writer is not None and (self.writer.ended or self.writer.lost):
                raise StopAsyncIteration from None
            raise CutShort from None


async def _stream(
    edge: Edge,
    request: HttpRequest,
    answer: StreamAnswer,
    *,
    task_status: trio.TaskStatus[QuartResponse],
) -> None:
    """Produce *answer*. hypercorn shields its writes from cancellation, so that a client which has
    stopped reading pins the task that writes for as long as its connection lives; this one lets go
    after the stall bound."""
    send, receive = trio.open_memory_channel[bytes](BUFFER)
    frames = _Frames(receive)

    def started(answer: StreamAnswer) -> None:
        response = QuartResponse(frames, answer.status)
        response.timeout = None  # Quart's default ends a response after 60 s
        response.headers.update(response_headers(answer, request.request_id, close=False))
        task_status.started(response)

    with send:
        writer = frames.writer = StreamWriter(answer, ChannelSink(send, started))
        async with trio.open_nursery() as pacing:
            pacing.start_soon(partial(keep_pace, writer))
            failure = await edge.stream(request, writer)
            pacing.cancel_scope.cancel("the stream has ended")
    if failure is not None:
        receive.close()
        task_status.started(_response(failure, request, close=False))


def _response(answer: Answer, request: HttpRequest, *, close: bool) -> QuartResponse:
    response = QuartResponse(b"" if request.method == "HEAD" else answer.body, answer.status)
    headers = response_headers(answer, request.request_id, close=close)
    if "content-type" not in headers:
        del response.headers["content-type"]
    response.headers.update(headers)
    return response
