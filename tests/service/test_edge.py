"""The edge, without any server."""

from __future__ import annotations

import gzip

import attrs
import pytest
import trio
from fakes.streams import RecordingSink

from cortex.errors import BadRequest, CortexError, Forbidden, ModelNotFound, Overloaded
from cortex.service.edge import Edge, Reply, response_headers
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer
from cortex.service.stream import StreamWriter
from cortex.wire import json

LIMIT = 1000


def render(error: CortexError, request_id: str) -> Answer:
    return Answer(json.dumps({"code": error.error_code, "id": request_id}), error.status)


def other(error: CortexError, request_id: str) -> Answer:
    return Answer(b"other", error.status)


@attrs.define(eq=False)
class Body:
    """A body that has not been read yet, unless it is empty."""

    content: bytes = b""
    error: CortexError | None = None
    complete: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.complete = not self.content

    async def read(self) -> bytes:
        if self.error is not None:
            raise self.error
        self.complete = True
        return self.content


async def echo(request: HttpRequest) -> Answer:
    return Answer(request.body, headers={"x-id": request.params.get("id", "")})


async def fail(request: HttpRequest) -> Answer:
    raise ZeroDivisionError("secret")


def guard(request: HttpRequest, route: Route) -> None:
    if route.scope == "admin":
        raise Forbidden("not you")
    request.caller = "caller"


ROUTES = [
    Route("POST", "/echo", echo),
    Route("GET", "/items/{id}", echo),
    Route("POST", "/fail", fail, other),
    Route("POST", "/admin", echo, scope="admin"),
]


def edge() -> Edge:
    return Edge(
        ROUTES,
        render_error=render,
        render_error_for=lambda request: other if request.path.startswith("/other") else render,
        guard=guard,
        max_body_bytes=LIMIT,
    )


def request(method: str = "POST", path: str = "/echo", **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(method, path, named, b"", {}, "r")


async def ask(asked: HttpRequest, body: Body | None = None) -> tuple[int, bytes, Reply]:
    reply = await edge().answer(asked, body or Body())
    assert isinstance(reply.answer, Answer)
    return reply.answer.status, reply.answer.body, reply


async def test_a_request_reaches_its_handler_with_its_body_caller_and_parameters():
    asked = request()
    status, content, reply = await ask(asked, Body(b"hello"))
    assert (status, content, reply.close) == (200, b"hello", False)
    assert asked.caller == "caller"
    _, _, reply = await ask(request("GET", "/items/a"))
    assert reply.answer.headers == {"x-id": "a"}


REFUSED = {
    "path": ("GET", "/nope", {}, 404, "not_found"),
    "method": ("GET", "/echo", {}, 405, "method_not_allowed"),
    "guard": ("POST", "/admin", {}, 403, "permission_error"),
    "expectation": ("POST", "/echo", {"expect": "miracles"}, 417, "expectation_failed"),
    "encoding": (
        "POST",
        "/echo",
        {"content_encoding": "br"},
        415,
        "request_body_encoding_unsupported",
    ),
    "framing": (
        "POST",
        "/echo",
        {"content_length": "1", "transfer_encoding": "chunked"},
        400,
        "invalid_value",
    ),
    "websocket": ("GET", "/echo", {"upgrade": "websocket"}, 426, "upgrade_required"),
    "websocket-among-others": ("GET", "/", {"upgrade": "h2c, WebSocket"}, 426, "upgrade_required"),
    "options-of-nothing": ("OPTIONS", "/nope", {}, 404, "not_found"),
}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"), REFUSED.values(), ids=REFUSED.keys()
)
async def test_what_is_refused_leaves_its_body_unread_and_ends_the_connection(
    method, path, headers, status, code
):
    asked = request(method, path, **headers)
    found, content, reply = await ask(asked, Body(b"body"))
    assert found == status
    assert json.loads(content) == {"code": code, "id": "r"}
    assert reply.close
    _, _, reply = await ask(asked)
    assert not reply.close


async def test_an_upgrade_to_what_is_no_websocket_is_no_reason_to_refuse():
    assert (await ask(request("GET", "/items/a", upgrade="h2c")))[0] == 200
    assert (await ask(request(upgrade="websocket"), Body(b"x")))[0] == 200


async def test_options_are_the_methods_of_a_path():
    status, content, reply = await ask(request("OPTIONS", "/items/a"))
    assert (status, content) == (204, b"")
    assert reply.answer.headers == {"allow": "GET, HEAD, OPTIONS"}
    shown = response_headers(reply.answer, "r", close=False)
    assert not {"content-length", "content-type"} & set(shown)


async def test_a_body_is_decoded_before_the_handler_sees_it_and_under_the_same_cap():
    asked = request(content_encoding="gzip")
    assert (await ask(asked, Body(gzip.compress(b"hello"))))[1] == b"hello"
    status, content, _ = await ask(asked, Body(gzip.compress(b"x" * (LIMIT + 1))))
    assert status == 413
    assert json.loads(content)["code"] == "request_body_too_large_after_decoding"
    status, content, _ = await ask(asked, Body(b"hello"))
    assert (status, json.loads(content)["code"]) == (400, "request_body_encoding_invalid")


async def test_what_a_body_fails_with_is_the_answer():
    body = Body(b"x", BadRequest("slow", code="body_timeout"))
    status, content, reply = await ask(request(), body)
    assert (status, json.loads(content)["code"], reply.close) == (400, "body_timeout", True)


async def test_errors_wear_the_shape_of_their_route_or_path():
    assert (await ask(request(path="/fail")))[:2] == (500, b"other")
    assert (await ask(request(path="/other/nope")))[:2] == (404, b"other")


# Streams


async def streamed(error: Exception | None, *, first: bytes = b"", **fields):
    """What becomes of a stream that writes *first* and then fails."""

    async def produce(writer):
        if first:
            await writer.write(first)
        if error is not None:
            raise error

    writer = StreamWriter(StreamAnswer(produce, **fields), RecordingSink())
    return await edge().stream(request(), writer), writer


async def test_a_stream_is_ended():
    failure, writer = await streamed(None, first=b"x")
    assert failure is None
    assert (writer.sink.body, writer.sink.ended) == (b"x", True)


async def test_a_failure_before_the_status_is_an_answer():
    failure, writer = await streamed(ModelNotFound("x"))
    assert (failure.status, json.loads(failure.body)["code"]) == (404, "model_not_found")
    assert not writer.committed
    failure, _ = await streamed(ExceptionGroup("", [Overloaded("x")]))
    assert failure.status == 429


async def test_an_answer_may_have_its_own_words_for_errors_but_not_for_bugs():
    assert (await streamed(Overloaded("x"), render_error=other))[0].body == b"other"
    failure, _ = await streamed(ZeroDivisionError("secret"), render_error=other)
    assert failure.status == 500
    assert b"secret" not in failure.body


async def test_a_failure_after_the_status_leaves_the_stream_without_its_end(caplog):
    failure, writer = await streamed(Overloaded("x"), first=b"x")
    assert failure is None
    assert not writer.sink.ended
    assert "cut short" in caplog.text


async def test_a_client_that_has_gone_is_no_failure(caplog):
    async def produce(writer):
        await writer.commit()
        writer.sink.gone = True
        await writer.write(b"x")

    writer = StreamWriter(StreamAnswer(produce), RecordingSink())
    assert await edge().stream(request(), writer) is None
    assert writer.lost
    assert caplog.text == ""


async def test_a_break_that_is_not_the_clients_is_a_failure():
    failure, _ = await streamed(trio.BrokenResourceError("some other pipe"))
    assert failure.status == 500
