"""The HTTP edge: from a request's head and body to a handler, and from what it returns or raises to
an answer.

Knows no server. Everything a client can send wrong before a handler sees it (unknown route,
ambiguous framing, an encoding or expectation that we do not know, an upgrade) is answered here, in
the error shape of the route it was meant for. Servers bring the head and a `BodyReader`, and carry
what they get back to the client: `quart_app` for hypercorn, `lane` for our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol, TypeVar

import attrs
import trio

from cortex.errors import (
    BadRequest,
    CortexError,
    ExpectationFailed,
    InternalError,
    UpgradeRequired,
    clip,
)
from cortex.service import logs
from cortex.service.cancellation import is_cancellation, is_drain_over
from cortex.service.cors import Cors
from cortex.service.encoding import decode, decoder_for
from cortex.service.http import (
    Answer,
    Ended,
    ErrorRenderer,
    Guard,
    HttpRequest,
    Route,
    StreamAnswer,
)
from cortex.service.routing import RouteTable
from cortex.service.stream import ClientStalled, StreamWriter

BODY_SECONDS = 60  # to receive a body; 64 MiB at 10 Mbit/s take 54 s
MAX_BODY_BYTES = 64 * 1024 * 1024
CLIENT_GONE = 499  # in metrics and logs only: nobody is there to read it
BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})

log = logs.get("service.edge")


Reached = TypeVar("Reached", bound=Answer | StreamAnswer)


class BodyReader(Protocol):
    """The body of one request, as its server reads it."""

    @property
    def complete(self) -> bool:
        """Whether nothing of it is left on the connection."""
        ...

    async def read(self) -> bytes:
        """All of it, at most ``max_body_bytes``. PayloadTooLarge, BadRequest (not in time, or no
        proper framing)."""
        ...


@attrs.frozen(eq=False)
class Reply:
    """What to send. *close*: the connection cannot carry another request."""

    answer: Answer | StreamAnswer
    close: bool


class Edge:
    """Serves *routes*.

    *render_error* shapes errors of routes without a renderer of their own and, unless
    *render_error_for* chooses one for the request, of paths that no route has. *guard* runs before
    the body is read. *max_body_bytes* bounds a body as it comes and as it is decoded. *ended* hears
    once of each request that its handler has not ``recorded``, or that has reached none. *cors* is
    what pages of other origins are told, on all routes but those of the scope admin.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        render_error: ErrorRenderer,
        render_error_for: Callable[[HttpRequest], ErrorRenderer] | None = None,
        guard: Guard | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        ended: Ended | None = None,
        cors: Cors | None = None,
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self._table = RouteTable(routes)
        self._render_error = render_error
        self._render_error_for = render_error_for
        self._guard = guard
        self._ended = ended
        self._cors = cors

    async def answer(self, request: HttpRequest, body: BodyReader) -> Reply:
        """The answer to *request*, whose body is read on the way. Raises nothing but
        cancellation."""
        answer: Answer | StreamAnswer
        try:
            answer = await self._answer(request, body)
        except Exception as exc:
            answer = self.refused(request, exc)
        except BaseException as exc:
            self._left(request, exc)
            raise
        else:
            answer = self._shared(request, answer)
        if isinstance(answer, Answer):
            self._end(request, answer.status, "complete" if answer.status < 400 else "error")
        return Reply(answer, close=not body.complete)

    async def stream(self, request: HttpRequest, writer: StreamWriter) -> Answer | None:
        """Run the answer of *writer* to its end. The answer to give instead, where it failed before
        its status was sent. After that a failure leaves the writer without its end."""
        try:
            failure = await self._stream(request, writer)
        except BaseException as exc:
            self._left(request, exc)
            raise
        if writer.lost:
            self._end(request, CLIENT_GONE, "client_gone")
        else:  # a failure that can be told has been recorded
            self._end(request, writer.answer.status, "complete" if writer.ended else "cut_short")
        return failure

    def refused(self, request: HttpRequest, exc: Exception) -> Answer:
        """As `failed`, for a request that ends with it."""
        answer = self.failed(request, exc)
        self._end(request, answer.status, _label(as_cortex_error(exc)))
        return answer

    def _left(self, request: HttpRequest, error: BaseException) -> None:
        """*request* ends in what leaves nobody to answer."""
        if is_drain_over(error):
            self._end(request, HTTPStatus.SERVICE_UNAVAILABLE, "draining")
        elif is_cancellation(error):
            self._end(request, CLIENT_GONE, "client_gone")
        else:
            self._end(request, HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__)

    def _end(self, request: HttpRequest, status: int, how: str) -> None:
        if not request.recorded and self._ended is not None:
            self._ended(request, int(status), how)
        request.recorded = True

    async def _stream(self, request: HttpRequest, writer: StreamWriter) -> Answer | None:
        answer = writer.answer
        try:
            await answer.produce(writer)
            await writer.finish()
        except (ClientStalled, trio.BrokenResourceError) as exc:
            if not writer.lost:
                return self._failed_stream(request, writer, exc)
        except Exception as exc:
            return self._failed_stream(request, writer, exc)
        return None

    def failed(self, request: HttpRequest, exc: Exception) -> Answer:
        """The answer to a request that ended in *exc*."""
        error = as_cortex_error(exc)
        if isinstance(error, InternalError):
            log.error("request failed", exc=exc, path=clip(request.path))
        return self._shared(request, self._renderer(request)(error, request.request_id))

    def _failed_stream(
        self, request: HttpRequest, writer: StreamWriter, exc: Exception
    ) -> Answer | None:
        render = writer.answer.render_error
        error = as_cortex_error(exc)
        if writer.committed:
            log.error("stream cut short", exc=exc, path=clip(request.path))
            return None
        if render is None or isinstance(error, InternalError):
            return self.refused(request, exc)
        answer = self._shared(request, render(error, request.request_id))
        self._end(request, answer.status, _label(error))
        return answer

    async def _answer(self, request: HttpRequest, body: BodyReader) -> Answer | StreamAnswer:
        headers, method = request.headers, request.method
        if "upgrade" in headers and method == "GET" and _is_websocket(headers["upgrade"]):
            raise UpgradeRequired("WebSockets are not spoken here; send the request over HTTP")
        if method == "OPTIONS":
            return self._options(request)
        found = self._table.find(method, request.path)
        if isinstance(found, CortexError):
            raise found
        request.params = found.params
        if self._guard is not None:
            self._guard(request, found.route)
        if "transfer-encoding" in headers and "content-length" in headers:
            # Two framings: a proxy in front may have believed the other one (request smuggling).
            raise BadRequest("content-length and transfer-encoding exclude each other")
        if "expect" in headers and headers["expect"].lower() != "100-continue":
            raise ExpectationFailed(f"nobody here can meet {clip(headers['expect'])}")
        decoder = decoder_for(headers.get("content-encoding"))
        if method not in BODILESS:
            request.body = await body.read()
            if decoder is not None:
                request.body = await decode(request.body, decoder, self.max_body_bytes)
        return await found.route.handler(request)

    def _options(self, request: HttpRequest) -> Answer:
        """What may be done with a path. Needs no key: a browser asks without."""
        methods = self._table.methods(request.path)
        if isinstance(methods, CortexError):
            raise methods
        headers = {"allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        cors = self._cors_for(request)
        if cors is not None:
            headers |= cors.preflight(request.headers, methods)
        return Answer(b"", HTTPStatus.NO_CONTENT, headers)

    def _shared(self, request: HttpRequest, answer: Reached) -> Reached:
        """*answer*, with what it says to pages of other origins."""
        cors = self._cors_for(request)
        if cors is None:
            return answer
        told = cors.headers(request.headers, answer.headers)
        return attrs.evolve(answer, headers={**answer.headers, **told})

    def _cors_for(self, request: HttpRequest) -> Cors | None:
        """What to go by on the path of *request*; None where no page is told anything."""
        if self._cors is None or not self._cors.on:
            return None
        route = self._table.any_route(request.path)
        return None if route is None or route.scope == "admin" else self._cors

    def _renderer(self, request: HttpRequest) -> ErrorRenderer:
        route = self._table.any_route(request.path)
        if route is not None and route.render_error is not None:
            return route.render_error
        if self._render_error_for is not None:
            return self._render_error_for(request)
        return self._render_error


def response_headers(
    answer: Answer | StreamAnswer, request_id: str, *, close: bool
) -> dict[str, str]:
    """The headers of *answer*, all of them but those that frame a stream's body."""
    if isinstance(answer, StreamAnswer):
        # nginx buffers streams unless it is told not to
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        headers["content-type"] = answer.content_type
    elif answer.status == HTTPStatus.NO_CONTENT:
        headers = {}
    else:
        headers = {"content-length": str(len(answer.body)), "content-type": answer.content_type}
    headers |= answer.headers
    headers["x-request-id"] = headers["request-id"] = request_id
    if close:
        headers["connection"] = "close"
    return headers


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


def _label(error: CortexError) -> str:
    return error.error_code or error.code or "error"


def _is_websocket(upgrade: str) -> bool:
    return any(name.strip().lower() == "websocket" for name in upgrade.split(","))
