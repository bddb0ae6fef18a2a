"""The HTTP edge: from Quart's requests to handlers, and from what they return or raise to answers.

Handlers know nothing of Quart. Everything a client can send wrong before a handler sees it (unknown
route, oversized or slow body, ambiguous framing, a body encoding we do not read) is answered here,
in the error shape of the route it was meant for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio
from quart import Response as QuartResponse
from quart import request as current_request
from quart.asgi import ASGIHTTPConnection
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from cortex.errors import (
    BadRequest,
    CortexError,
    InternalError,
    PayloadTooLarge,
    UnsupportedMediaType,
    clip,
)
from cortex.service import logs
from cortex.service.http import (
    Answer,
    ErrorRenderer,
    Guard,
    HttpRequest,
    Route,
    StreamAnswer,
    request_id_from,
)
from cortex.service.routing import RouteTable

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
BODY_SECONDS = 60  # to receive a body; 64 MiB at 10 Mbit/s take 54 s

log = logs.get("service.edge")


class _Connection(TrioASGIHTTPConnection):
    """Hands each request the nursery that lives exactly as long as its response.

    quart-trio cancels that nursery on ``http.disconnect``, which hypercorn also sends from within
    the last write of a complete response: its own closing of the connection was then cancelled,
    and a client that waits for the close (``connection: close``) waited for the keep-alive timeout.
    Hence a disconnect counts only until the last write has begun.
    """

    _finishing = False

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


class _NoWebSocket:
    """Declines every WebSocket with 403. Quart's own way to a 404 needs a request, and fails."""

    def __init__(self, app: object, scope: object) -> None:
        pass

    async def __call__(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 1000})


def make_app(
    name: str,
    routes: Iterable[Route],
    *,
    render_error: ErrorRenderer,
    render_error_for: Callable[[str], ErrorRenderer] | None = None,
    guard: Guard | None = None,
    max_body_bytes: int = 64 * 1024 * 1024,
) -> QuartTrio:
    """An ASGI application serving *routes*.

    *render_error* shapes errors of routes without a renderer of their own and, unless
    *render_error_for* chooses one by path, of paths that no route has. *guard* raises for requests
    that may not reach their handler (a missing token); it runs before the body is read.
    """
    app = QuartTrio(name, static_folder=None)
    app.asgi_http_class = _Connection
    app.asgi_websocket_class = _NoWebSocket  # type: ignore[assignment]
    app.config.update(
        MAX_CONTENT_LENGTH=max_body_bytes, BODY_TIMEOUT=BODY_SECONDS, RESPONSE_TIMEOUT=None
    )
    # The path is ours to match: werkzeug would redirect `//v1//models`.
    app.url_map.merge_slashes = False
    edge = _Edge(RouteTable(routes), render_error, render_error_for, guard)

    async def view(path: str = "") -> QuartResponse:
        return await edge.answer()

    for rule in ("/", "/<path:path>"):
        app.add_url_rule(
            rule, f"edge{rule}", view, methods=METHODS, provide_automatic_options=False
        )

    async def fallback(error: HTTPException) -> QuartResponse:
        request_id = request_id_from({k.lower(): v for k, v in current_request.headers.items()})
        problem = CortexError(error.name, code="http_error")
        answer = render_error(problem, request_id)
        return _respond(
            Answer(answer.body, error.code or 400, answer.headers), request_id, "GET", close=True
        )

    app.register_error_handler(HTTPException, fallback)
    return app


class _Edge:
    def __init__(
        self,
        table: RouteTable,
        render_error: ErrorRenderer,
        render_error_for: Callable[[str], ErrorRenderer] | None,
        guard: Guard | None,
    ) -> None:
        self._table = table
        self._render_error = render_error
        self._render_error_for = render_error_for
        self._guard = guard

    async def answer(self) -> QuartResponse:
        incoming: Any = current_request
        headers = {key.lower(): value for key, value in incoming.headers.items()}
        request = HttpRequest(
            method=incoming.method,
            path=incoming.path,
            headers=headers,
            body=b"",
            query=incoming.args.to_dict(),
            nursery=incoming.nursery,
            request_id=request_id_from(headers),
            peer=incoming.remote_addr,
        )
        logs.request_id.set(request.request_id)
        close = False
        try:
            found = self._table.find(request.method, request.path)
            if isinstance(found, CortexError):
                raise found
            request.params = found.params
            if self._guard is not None:
                self._guard(request, found.route)
            close = True  # until the body is read, what remains of it would be the next request
            await _read_body(incoming, request)
            close = False
            answer = await found.route.handler(request)
        except Exception as exc:
            answer = self._failed(request, exc)
        return _respond(answer, request.request_id, request.method, close=close)

    def _failed(self, request: HttpRequest, exc: Exception) -> Answer:
        error = as_cortex_error(exc)
        if isinstance(error, InternalError):
            log.error("request failed", exc=exc, path=clip(request.path))
        renderer = self._renderer(request.path)
        return renderer(error, request.request_id)

    def _renderer(self, path: str) -> ErrorRenderer:
        route = self._table.any_route(path)
        if route is not None and route.render_error is not None:
            return route.render_error
        if self._render_error_for is not None:
            return self._render_error_for(path)
        return self._render_error


def as_cortex_error(exc: BaseException) -> CortexError:
    """The error to tell the client: *exc* itself, the one leaf of a group, or our bug."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, BaseExceptionGroup):
        known = [inner for inner in exc.exceptions if isinstance(inner, CortexError)]
        if known and len(known) == len(exc.exceptions):
            return known[0]
    if isinstance(exc, CortexError):
        return exc
    return InternalError("an internal error occurred; the log has its cause")


async def _read_body(incoming: Any, request: HttpRequest) -> None:
    headers = request.headers
    if "content-length" in headers and "transfer-encoding" in headers:
        # Two framings: a proxy in front may have believed the other one (request smuggling).
        raise BadRequest("content-length and transfer-encoding exclude each other")
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", ""):
        raise UnsupportedMediaType(f"content-encoding {clip(encoding)} is not supported")
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    try:
        request.body = await incoming.get_data(cache=False)
    except RequestEntityTooLarge as exc:
        limit = incoming.max_content_length // (1024 * 1024)
        raise PayloadTooLarge(f"the request body is larger than {limit} MiB") from exc
    except RequestTimeout as exc:
        raise BadRequest("the request body did not arrive in time", code="body_timeout") from exc


def _respond(
    answer: Answer | StreamAnswer, request_id: str, method: str, *, close: bool
) -> QuartResponse:
    if isinstance(answer, StreamAnswer):
        response = QuartResponse(answer.chunks, answer.status)
        response.timeout = None  # Quart's default ends a response after 60 s
        response.headers["cache-control"] = "no-cache"
        response.headers["x-accel-buffering"] = "no"  # nginx buffers streams otherwise
    else:
        response = QuartResponse(b"" if method == "HEAD" else answer.body, answer.status)
        response.headers["content-length"] = str(len(answer.body))
    response.headers["content-type"] = answer.content_type
    for name, value in answer.headers.items():
        response.headers[name] = value
    response.headers["x-request-id"] = request_id
    response.headers["request-id"] = request_id
    if close:
        response.headers["connection"] = "close"
    return response
