"""The edge as an ASGI application, over a real server on a free port."""

from __future__ import annotations

from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from cortex.errors import CortexError, ModelNotFound, Overloaded
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer, Writer
from cortex.service.quart_app import make_app
from cortex.service.serve import listen, serve
from cortex.wire import json


def render(error: CortexError, request_id: str) -> Answer:
    body = {"error": {"message": error.message, "code": error.error_code}, "id": request_id}
    return Answer(json.dumps(body), error.status)


class Service:
    def __init__(self):
        self.gone = trio.Event()
        self.streamed = trio.Event()

    async def echo(self, request: HttpRequest) -> Answer:
        return Answer(request.body, headers={"x-seen": request.headers.get("x-a", "")})

    async def item(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps(dict(request.params)))

    async def fail(self, request: HttpRequest) -> Answer:
        kind = request.query.get("kind")
        if kind == "known":
            raise ModelNotFound("no such model")
        if kind == "group":
            async with trio.open_nursery():
                raise Overloaded("full")
        raise RuntimeError("secret detail")

    async def stream(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            try:
                for n in range(3):
                    await writer.write(b"data: %d\n\n" % n)
                if request.query.get("fail"):
                    raise RuntimeError("secret detail")
                if request.query.get("hang"):
                    self.streamed.set()
                    await trio.sleep_forever()
            finally:
                self.gone.set()

        return StreamAnswer(produce)

    async def wait(self, request: HttpRequest) -> Answer:
        self.streamed.set()
        try:
            await trio.sleep_forever()
        finally:
            self.gone.set()


@asynccontextmanager
async def running(service, **kwargs):
    routes = [
        Route("POST", "/echo", service.echo),
        Route("GET", "/items/{id:path}/part", service.item),
        Route("GET", "/fail", service.fail),
        Route("GET", "/stream", service.stream),
        Route("GET", "/wait", service.wait),
    ]
    app = make_app("t", routes, render_error=render, **kwargs)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def start(task_status):
            await serve(
                app,
                listen("127.0.0.1:0"),
                stop=stop.wait,
                drain_seconds=1,
                task_status=task_status,
            )

        url = await nursery.start(start)
        try:
            yield url
        finally:
            stop.set()


@pytest.fixture
async def served():
    service = Service()
    async with running(service, max_body_bytes=1000) as url, httpx.AsyncClient(base_url=url) as c:
        yield service, c, url


async def raw(url: str, data: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(data)
        received = b""
        with trio.fail_after(5):
            while chunk := await stream.receive_some():
                received += chunk
    return received


async def test_a_body_reaches_its_handler_and_the_answer_its_client(served):
    _, client, _ = served
    answer = await client.post("/echo", content=b'{"a":1}', headers={"x-a": "b"})
    assert (answer.status_code, answer.content) == (200, b'{"a":1}')
    assert answer.headers["x-seen"] == "b"
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


async def test_a_harmless_request_id_is_kept_and_a_harmful_one_replaced(served):
    _, client, _ = served
    kept = await client.post("/echo", headers={"x-request-id": "abc-1.2"})
    assert kept.headers["x-request-id"] == "abc-1.2"
    for bad in ('a"b', "x" * 10_000, "a b"):
        answer = await client.post("/echo", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_path_parameters_may_hold_slashes(served):
    _, client, _ = served
    answer = await client.get("/items/Qwen/Qwen3-8B/part")
    assert answer.json() == {"id": "Qwen/Qwen3-8B"}


@pytest.mark.parametrize("path", ["/nope", "/items//part", "/a/../echo", "/%2e%2e/echo", "/echo/"])
async def test_an_unknown_path_is_404_and_never_redirected(served, path):
    _, _, url = served
    answer = await raw(
        url, b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode()
    )
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"not_found"' in answer


async def test_a_wrong_method_is_405_and_head_is_served_without_a_body(served):
    _, client, _ = served
    assert (await client.get("/echo")).status_code == 405
    assert (await client.delete("/echo")).json()["error"]["code"] == "method_not_allowed"
    head = await client.head("/items/a/part")
    assert (head.status_code, head.content) == (200, b"")


async def test_errors_become_answers_and_hide_what_is_not_the_clients(served):
    _, client, _ = served
    known = await client.get("/fail?kind=known")
    assert (known.status_code, known.json()["error"]["code"]) == (404, "model_not_found")
    group = await client.get("/fail?kind=group")
    assert (group.status_code, group.json()["error"]["code"]) == (429, "overloaded")
    bug = await client.get("/fail")
    assert bug.status_code == 500
    assert "secret" not in bug.text


async def test_a_body_over_the_cap_is_413_with_a_length_and_without(served):
    _, client, url = served
    assert (await client.post("/echo", content=b"x" * 1001)).status_code == 413
    chunked = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
    answer = await raw(url, chunked)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert (await client.post("/echo", content=b"y")).content == b"y"


async def test_two_framings_are_refused_and_the_connection_closed(served):
    _, _, url = served
    smuggled = (
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n"
        b"0\r\n\r\nPOST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    )
    answer = await raw(url, smuggled)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_encoding_we_do_not_read_is_415(served):
    _, client, _ = served
    answer = await client.post("/echo", content=b"x", headers={"content-encoding": "br"})
    assert answer.status_code == 415


async def test_a_stream_arrives_whole(served):
    _, client, _ = served
    answer = await client.get("/stream")
    assert answer.content == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_stream_that_fails_after_its_status_never_looks_whole(served):
    _, _, url = served
    answer = await raw(url, b"GET /stream?fail=1 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"data: 2\n\n" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"secret" not in answer


async def test_a_small_body_that_nobody_wants_is_read_and_the_connection_goes_on(served):
    _, _, url = served
    unwanted = b"POST /nope HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    last = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\ny"
    answer = await raw(url, unwanted * 2 + last)
    assert answer.count(b"HTTP/1.1 404") == 2
    assert answer.endswith(b"y")


@pytest.mark.parametrize("path", ["/stream?hang=1", "/wait"])
async def test_a_client_that_leaves_ends_its_request(served, path):
    service, _, url = served
    host, port = url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
    with trio.fail_after(5):
        await service.streamed.wait()
        await stream.aclose()
        await service.gone.wait()


async def test_a_guard_refuses_before_the_body_is_read():
    def guard(request: HttpRequest, route: Route) -> None:
        assert (route.path, route.scope) == ("/echo", "inference")
        raise Overloaded("not you")

    async with running(Service(), guard=guard) as url:
        answer = await raw(url, b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 429")
