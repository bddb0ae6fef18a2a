"""TLS on either lane: requests, clients that leave or stall, the drain, certificates."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

import attrs
import pytest
import trio
import trio.testing
from fakes.tls import pem, trusting

from cortex.errors import CortexError
from cortex.service.edge import Edge
from cortex.service.http import Answer, HttpRequest, Pace, Route, StreamAnswer, Writer
from cortex.service.quart_app import app_over
from cortex.service.serve import FastRoutes, listen, serve
from cortex.service.tls import HANDSHAKE_SECONDS, BadCertificate, Tls, server_context

PACE = Pace(commit_after=0.05, keep_alive=0.05, stall=0.3)
HOT = ("/answer", "/waits", "/streams", "/flood")
ONE = server_context(pem("one"), pem("one"))


def render(error: CortexError, request_id: str) -> Answer:
    return Answer(error.message.encode(), error.status)


@attrs.define(eq=False)
class Running:
    """A server; ``begun`` when a request is where its path says, ``ended`` when it is over."""

    fast: bool
    drain_seconds: float = 5.0
    tls: Tls = attrs.field(factory=lambda: Tls(ONE))
    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    go: trio.Event = attrs.field(factory=trio.Event)
    stop: trio.Event = attrs.field(factory=trio.Event)
    stopped: trio.Event = attrs.field(factory=trio.Event)
    where: tuple[str, int] = ("", 0)
    url: str = ""

    async def answer(self, request: HttpRequest) -> Answer:
        return Answer(request.body)

    async def waits(self, request: HttpRequest) -> Answer:
        self.begun.set()
        try:
            await self.go.wait()
        finally:
            self.ended.set()
        return Answer(b"went")

    async def streams(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            try:
                await writer.write(b"first")
                self.begun.set()
                await self.go.wait()
                await writer.write(b"last")
            finally:
                self.ended.set()

        return StreamAnswer(produce, PACE, filler=lambda: b":")

    async def flood(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            self.begun.set()
            while True:
                await writer.write(b"x" * 65536)

        return StreamAnswer(produce)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        routes = [Route("POST", path, getattr(self, path[1:])) for path in HOT]
        edge = Edge([*routes, Route("GET", "/cold", self.answer)], render_error=render)
        listener = listen("127.0.0.1:0")
        self.where = listener.getsockname()
        async with trio.open_nursery() as nursery:
            self.url = await nursery.start(self._serve, edge, listener)
            task_status.started()
        self.stopped.set()

    async def _serve(self, edge, listener, *, task_status):
        await serve(
            app_over(edge, "t"),
            listener,
            stop=self.stop.wait,
            drain_seconds=self.drain_seconds,
            fast=FastRoutes(edge, HOT) if self.fast else None,
            tls=self.tls,
            task_status=task_status,
        )

    async def connect(self, name: str = "one", receive_buffer: int | None = None) -> trio.SSLStream:
        raw = trio.socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await raw.connect(self.where)
        stream = trio.SSLStream(
            trio.SocketStream(raw),
            trusting(name),
            server_hostname="127.0.0.1",
            https_compatible=True,
        )
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream


def post(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def until(stream: trio.SSLStream, text: bytes) -> bytes:
    received = b""
    while text not in received:
        data = await stream.receive_some()
        assert data, f"ended without {text!r}: {received[-200:]!r}"
        received += data
    return received


@pytest.fixture(params=[True, False], ids=["fast", "hypercorn"])
async def running(request, nursery):
    running = Running(request.param)
    await nursery.start(running.run)
    with trio.fail_after(10):
        yield running
        running.go.set()
        running.stop.set()
        await running.stopped.wait()


async def test_a_connection_carries_hot_and_cold_requests(running):
    assert running.url == f"https://127.0.0.1:{running.where[1]}"
    async with await running.connect() as stream:
        assert stream.selected_alpn_protocol() is None  # the client has not asked
        for body in (b"a", b"<" + b"x" * 300_000 + b">"):
            await stream.send_all(post("/answer", body))
            await until(stream, b"\r\n\r\n" + body)
        await stream.send_all(b"GET /cold HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in await until(stream, b"\r\n\r\n")
        await stream.send_all(post("/answer", b"again"))
        await until(stream, b"again")


async def test_only_http_1_1_is_agreed_on(running):
    context = trusting("one")
    context.set_alpn_protocols(["h2", "http/1.1"])
    raw = await trio.open_tcp_stream(*running.where)
    async with trio.SSLStream(
        raw, context, server_hostname="127.0.0.1", https_compatible=True
    ) as stream:
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "http/1.1"
    assert ONE.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_stream_is_kept_alive_and_ends_whole(running):
    async with await running.connect() as stream:
        await stream.send_all(post("/streams"))
        await until(stream, b"first")
        await until(stream, b":")
        running.go.set()
        await until(stream, b"last")
        await stream.send_all(post("/answer", b"next"))
        await until(stream, b"next")


@pytest.mark.parametrize("path", ["/waits", "/streams"])
async def test_a_client_that_leaves_ends_its_request(running, path):
    stream = await running.connect()
    await stream.send_all(post(path))
    await running.begun.wait()
    await trio.aclose_forcefully(stream)
    with trio.fail_after(2):
        await running.ended.wait()
    assert not running.go.is_set()


async def test_what_is_under_way_is_finished_and_what_is_not_ends_at_once(running):
    idle, shaking = await running.connect(), await trio.open_tcp_stream(*running.where)
    async with idle, shaking, await running.connect() as stream:
        await stream.send_all(post("/waits"))
        await running.begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        running.stop.set()
        with trio.fail_after(2):
            assert await idle.receive_some() == b""
            assert await shaking.receive_some() == b""
        running.go.set()
        await until(stream, b"went")
        with trio.fail_after(2):
            assert await stream.receive_some() == b""


async def test_a_client_that_takes_no_data_does_not_hold_up_the_end(running):
    limited = Running(running.fast, drain_seconds=0.3)
    async with trio.open_nursery() as nursery:
        await nursery.start(limited.run)
        async with await limited.connect(receive_buffer=4096) as stream:
            await stream.send_all(post("/flood"))
            await limited.begun.wait()
            limited.stop.set()
            with trio.fail_after(5):
                await limited.stopped.wait()


@pytest.mark.parametrize("sent", [post("/answer"), b"\x16\x03\x01", b""])
async def test_what_is_no_handshake_is_closed_and_others_are_served(running, sent):
    stream = await trio.open_tcp_stream(*running.where)
    async with stream:
        await stream.send_all(sent)
        if sent == post("/answer"):
            received = b""
            with trio.fail_after(2):
                with suppress(trio.BrokenResourceError):  # reset: it had more to say
                    received = await stream.receive_some()
            assert received == b""
    async with await running.connect() as other:
        await other.send_all(post("/answer", b"well"))
        await until(other, b"well")


@pytest.mark.parametrize("fast", [True, False])
async def test_a_handshake_that_stalls_is_given_up(nursery, patient_clock, fast):
    running = Running(fast)
    await nursery.start(running.run)
    start = trio.current_time()
    async with await trio.open_tcp_stream(*running.where) as stream:
        await stream.send_all(b"\x16\x03\x01")
        assert await stream.receive_some() == b""
    assert trio.current_time() - start == pytest.approx(HANDSHAKE_SECONDS, abs=0.5)
    nursery.cancel_scope.cancel()


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps when nothing is to be done, but only once sockets were quiet for a moment."""
    return trio.testing.MockClock(autojump_threshold=0.01)


async def test_a_refusal_reaches_a_client_that_still_talks(nursery):
    running = Running(fast=True)
    await nursery.start(running.run)
    async with await running.connect() as stream:
        with trio.fail_after(5):
            await stream.send_all(b"POST /answer HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n")
            await stream.send_all(b"x" * 1_000_000)
            assert b" 400 " in await until(stream, b"\r\n\r\n")
    nursery.cancel_scope.cancel()


async def test_a_new_certificate_is_shown_to_new_connections(running):
    async with await running.connect() as old:
        await old.send_all(post("/streams"))
        await until(old, b"first")
        running.tls.context = server_context(pem("two"), pem("two"))
        async with await running.connect("two") as new:
            await new.send_all(post("/answer", b"new"))
            await until(new, b"new")
        with pytest.raises(trio.BrokenResourceError):
            await running.connect("one")
        running.go.set()
        await until(old, b"last")


# files


@pytest.mark.parametrize(
    ("certificate", "key", "of_key", "message"),
    [
        ("none", "one", False, "none.pem: No such file or directory"),
        ("one", "none", True, "none.pem: No such file or directory"),
        ("one", "two", True, "two.pem: is not the key of the certificate in "),
        ("empty", "one", False, "empty.pem: holds no certificate in PEM"),
        ("one", "empty", True, "empty.pem: holds no private key in PEM"),
        ("one", "locked", True, "locked.pem: has a passphrase"),
        ("folder", "one", False, "folder.pem: Is a directory"),
    ],
)
def test_files_that_make_no_certificate_are_named(tmp_path, certificate, key, of_key, message):
    (tmp_path / "empty.pem").write_text("nothing\n")
    (tmp_path / "folder.pem").mkdir()

    def path(name):
        return pem(name) if pem(name).exists() else tmp_path / f"{name}.pem"

    with pytest.raises(BadCertificate, match=message) as told:
        server_context(path(certificate), path(key))
    assert told.value.of_key is of_key
    assert "\n" not in str(told.value)
