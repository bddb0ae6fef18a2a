"""The fast lane on real sockets: clients that leave, stall and come in numbers; the drain."""

from __future__ import annotations

import gc
import os
import socket
import struct

import attrs
import pytest
import trio
import trio.testing

from cortex.errors import CortexError
from cortex.service.edge import Edge
from cortex.service.http import Answer, HttpRequest, Pace, Route, StreamAnswer, Writer
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
PACE = Pace(commit_after=0.05, keep_alive=0.05, stall=0.3)
HOT = ("/answer", "/waits", "/silent", "/streams", "/flood")


def render(error: CortexError, request_id: str) -> Answer:
    return Answer(error.message.encode(), error.status)


@attrs.define(eq=False)
class Service:
    """``begun`` when a request is where its path says, ``ended`` when it is over, and how."""

    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    how: list[str] = attrs.field(factory=list)
    go: trio.Event = attrs.field(factory=trio.Event)

    async def answer(self, request: HttpRequest) -> Answer:
        return Answer(request.body)

    async def waits(self, request: HttpRequest) -> Answer:
        with self._watched():
            self.begun.set()
            await self.go.wait()
        return Answer(b"went")

    async def silent(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            with self._watched():
                self.begun.set()
                await self.go.wait()
                await writer.write(b"end")

        return StreamAnswer(produce, PACE, filler=lambda: b":")

    async def streams(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            with self._watched():
                await writer.write(b"first")
                self.begun.set()
                await self.go.wait()
                await writer.write(b"last")

        return StreamAnswer(produce, attrs.evolve(PACE, keep_alive=60))

    async def flood(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            with self._watched():
                self.begun.set()
                while True:
                    await writer.write(b"x" * 65536)

        return StreamAnswer(produce, PACE)

    def _watched(self):
        service = self

        class Watched:
            def __enter__(self):
                pass

            def __exit__(self, kind, error, trace):
                service.how.append("whole" if kind is None else kind.__name__)
                service.ended.set()

        return Watched()


@attrs.define(eq=False)
class Running:
    service: Service
    drain_seconds: float = 5.0
    stop: trio.Event = attrs.field(factory=trio.Event)
    stopped: trio.Event = attrs.field(factory=trio.Event)
    where: tuple[str, int] = ("", 0)

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        routes = [Route("POST", path, getattr(self.service, path[1:])) for path in HOT]
        routes.append(Route("GET", "/cold", self.service.answer))
        edge = Edge(routes, render_error=render)
        listener = listen("127.0.0.1:0")
        self.where = listener.getsockname()
        await serve(
            app_over(edge, "t"),
            listener,
            stop=self.stop.wait,
            drain_seconds=self.drain_seconds,
            fast=FastRoutes(edge, HOT),
            task_status=task_status,
        )
        self.stopped.set()

    async def connect(self, data: bytes, receive_buffer: int | None = None) -> trio.SocketStream:
        raw = trio.socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await raw.connect(self.where)
        stream = trio.SocketStream(raw)
        await stream.send_all(data)
        return stream


def post(path: str, body: bytes = b"", *lines: bytes) -> bytes:
    head = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *lines]
    return b"\r\n".join([*head, b"content-length: %d" % len(body)]) + b"\r\n\r\n" + body


@pytest.fixture
async def running(nursery):
    running = Running(Service())
    await nursery.start(running.run)
    yield running
    running.service.go.set()
    running.stop.set()
    with trio.fail_after(5):
        await running.stopped.wait()


async def leave(stream: trio.SocketStream, how: str) -> None:
    if how == "half":
        await stream.send_eof()
        return
    if how == "reset":
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await stream.aclose()


async def read_all(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(5):
        while data := await stream.receive_some():
            received += data
    return received


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("path", ["/waits", "/silent", "/streams"])
async def test_a_client_that_leaves_ends_its_request_at_once(running, path, how):
    stream = await running.connect(post(path))
    with trio.fail_after(2):
        await running.service.begun.wait()
        await leave(stream, how)
        await running.service.ended.wait()
    assert running.service.how == ["Cancelled"]
    await stream.aclose()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_pipelined_bytes_do_not_hide_that_a_client_has_gone(running, how):
    stream = await running.connect(post("/waits") + post("/answer", b"x"))
    with trio.fail_after(2):
        await running.service.begun.wait()
        await leave(stream, how)
        await running.service.ended.wait()
    assert running.service.how == ["Cancelled"]


CUTS = [1, 20, len(post("/waits", b"hello")) - 5, len(post("/waits", b"hello")) - 1]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("cut", CUTS, ids=["line", "head", "no-body", "body"])
async def test_a_client_that_leaves_within_its_request_leaves_nothing_behind(running, cut, how):
    stream = await running.connect(post("/waits", b"hello")[:cut])
    await trio.testing.wait_all_tasks_blocked(0.01)
    await leave(stream, how)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not running.service.begun.is_set()
    running.stop.set()
    with trio.fail_after(1):
        await running.stopped.wait()


async def test_silence_is_filled_on_a_socket_too(running):
    async with await running.connect(post("/silent", b"", b"connection: close")) as stream:
        received = b""
        with trio.fail_after(5):
            while received.count(b"1\r\n:\r\n") < 3:
                received += await stream.receive_some()
            running.service.go.set()
            received += await read_all(stream)
    assert received.endswith(b"1\r\n:\r\n3\r\nend\r\n0\r\n\r\n")


async def test_a_client_that_takes_no_data_is_given_up_and_holds_up_no_other(running):
    async with await running.connect(post("/flood"), receive_buffer=4096):
        with trio.fail_after(5):
            await running.service.begun.wait()
            asked = post("/answer", b"y", b"connection: close")
            async with await running.connect(asked) as other:
                assert (await read_all(other)).endswith(b"y")
            await running.service.ended.wait()
    assert running.service.how == ["ClientStalled"]


async def test_a_large_answer_arrives_whole(running):
    body = os.urandom(8 << 20)
    async with await running.connect(b"") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, post("/answer", body, b"connection: close"))
        assert (await read_all(stream)).endswith(body)


async def test_both_lanes_on_one_port_and_one_connection(running):
    cold = b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n"
    last = post("/answer", b"last", b"connection: close")
    async with await running.connect(post("/answer", b"first") + cold + last) as stream:
        received = await read_all(stream)
    assert received.count(b"HTTP/1.1 200") == 3
    assert received.endswith(b"last")


async def test_what_is_under_way_is_finished_and_idle_connections_end_at_once(running):
    idle = await running.connect(post("/answer", b"x"))
    await idle.receive_some()
    busy = await running.connect(post("/streams"))
    with trio.fail_after(5):
        await running.service.begun.wait()
        running.stop.set()
        await read_all(idle)
        running.service.go.set()
        assert (await read_all(busy)).endswith(b"4\r\nlast\r\n0\r\n\r\n")
        await running.stopped.wait()
    for stream in (idle, busy):
        await stream.aclose()


async def test_the_drain_has_an_end(nursery):
    running = Running(Service(), drain_seconds=0.2)
    await nursery.start(running.run)
    flooded = await running.connect(post("/flood"), receive_buffer=4096)
    async with flooded, await running.connect(post("/waits")):
        await running.service.begun.wait()
        running.stop.set()
        with trio.fail_after(3):
            await running.stopped.wait()


async def test_cancelling_everything_at_once_leaves_no_trace(caplog):
    async with trio.open_nursery() as nursery:
        running = Running(Service())
        await nursery.start(running.run)
        streams = [await running.connect(post(path)) for path in ("/waits", "/streams", "/flood")]
        streams.append(await running.connect(b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n"))
        await running.service.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    for stream in streams:
        await stream.aclose()
    assert "failed" not in caplog.text


async def test_a_thousand_that_connect_and_leave_cost_nothing(running):
    async def come_and_go(count: int) -> None:
        for n in range(count):
            data = (b"", post("/waits")[:30], post("/waits"), b"GET /cold HTTP/1.1\r\n")[n % 4]
            stream = await running.connect(data)
            await leave(stream, ("close", "reset")[n % 2])
        await trio.testing.wait_all_tasks_blocked(0.02)

    await come_and_go(40)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(come_and_go, 250)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert set(running.service.how) <= {"Cancelled"}
