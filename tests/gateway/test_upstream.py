from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.raw_server import OK, Peer, RawServer
from trio.testing import wait_all_tasks_blocked

from cortex.errors import Overloaded
from cortex.gateway import upstream as module
from cortex.gateway.upstream import Broken, Call, PooledUpstream, Refused

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def serving(talk, stall=5.0):
    """A server that talks like that, and a client of it."""
    server = RawServer(talk)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        with trio.fail_after(10):
            async with PooledUpstream(stall) as upstream:
                yield server, upstream
        nursery.cancel_scope.cancel()


async def answering(peer: Peer) -> None:
    """Answers every request on every connection."""
    while await peer.request():
        await peer.say(OK)


def saying(*parts: bytes, stay: bool = False):
    """Answers one request with *parts*, then closes, or waits for the client to."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        for part in parts:
            await peer.say(part)
            await wait_all_tasks_blocked()
        if stay:
            await peer.closed()

    return talk


async def ask(upstream: PooledUpstream, server: RawServer, **fields) -> bytes:
    async with upstream.call(Call(server.url, "/x", b"{}", **fields)) as response:
        return await response.read(1000)


# The pool


async def test_a_connection_is_used_again_after_a_whole_answer():
    async with serving(answering) as (server, upstream):
        for _ in range(5):
            assert await ask(upstream, server) == b"ok"
        assert (server.connections, upstream.idle_connections) == (1, 1)


async def test_simultaneous_calls_have_connections_of_their_own():
    async with serving(answering) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as first:
            assert await ask(upstream, server) == b"ok"
            assert await first.read(10) == b"ok"
        assert (server.connections, upstream.idle_connections) == (2, 2)


async def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    gone = trio.Event()

    async def talk(peer):
        await peer.request()
        await peer.say(OK)
        if peer.number == 0:
            await peer.stream.aclose()
            gone.set()
        else:
            await peer.closed()

    async with serving(talk) as (server, upstream):
        assert await ask(upstream, server) == b"ok"
        await gone.wait()
        assert await ask(upstream, server) == b"ok"
        assert server.connections == 2


async def test_a_pooled_connection_that_fails_is_tried_once_and_then_a_fresh_one():
    requests = []

    async def talk(peer):
        requests.append(await peer.request())
        await peer.say(OK)
        if await peer.request():  # on a pooled connection every request is met with a close
            requests.append(b"lost")

    async with serving(talk) as (server, upstream):
        call = Call(server.url, "/x", b"{}")
        async with upstream.call(call) as a, upstream.call(call) as b, upstream.call(call) as c:
            for response in (a, b, c):
                await response.read(10)
        assert upstream.idle_connections == 3
        assert await ask(upstream, server) == b"ok"
        assert requests.count(b"lost") == 1
        assert server.connections == 4


async def test_what_comes_unasked_on_an_idle_connection_ends_it():
    async def talk(peer):
        await peer.request()
        await peer.say(OK)
        if peer.number == 0:
            await peer.say(OK)
        await peer.closed()

    async with serving(talk) as (server, upstream):
        assert await ask(upstream, server) == b"ok"
        await wait_all_tasks_blocked()
        assert await ask(upstream, server) == b"ok"
        assert server.connections == 2


async def test_a_connection_that_was_idle_too_long_is_not_used(monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    async with serving(answering) as (server, upstream):
        await ask(upstream, server)
        await ask(upstream, server)
        assert server.connections == 2


async def test_connections_that_a_busier_time_left_behind_are_closed(mock_clock, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 3.0)
    async with serving(answering) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as first:
            await ask(upstream, server)
            await first.read(10)
        assert upstream.idle_connections == 2
        for seconds, expected in ((2.0, 2), (1.5, 1)):  # one of them alone is used meanwhile
            mock_clock.jump(seconds)
            await ask(upstream, server)
            assert upstream.idle_connections == expected


async def test_a_quiet_time_closes_and_forgets_every_connection(mock_clock, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 3.0)
    async with serving(answering, stall=600) as (server, upstream):
        await ask(upstream, server)
        await wait_all_tasks_blocked()
        assert upstream.idle_connections == 1
        for _ in range(2):
            mock_clock.jump(module.IDLE_SECONDS)
            await wait_all_tasks_blocked()
        assert (upstream.idle_connections, upstream._hosts) == (0, {})
        await server.left.wait()


async def test_the_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_IDLE_PER_HOST", 1)
    async with serving(answering) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as first:
            await ask(upstream, server)
            await first.read(10)
        assert upstream.idle_connections == 1


async def test_connections_to_a_host_are_bounded_and_handed_on(monkeypatch):
    monkeypatch.setattr(module, "MAX_PER_HOST", 1)
    order = []

    async def one(upstream, server, number):
        assert await ask(upstream, server) == b"ok"
        order.append(number)

    async with serving(answering) as (server, upstream):
        call = upstream.call(Call(server.url, "/x", b""))
        async with trio.open_nursery() as nursery, call as first:
            for number in range(3):
                nursery.start_soon(one, upstream, server, number)
                await wait_all_tasks_blocked()
            assert order == []
            await first.read(10)
        assert order == [0, 1, 2]
        assert server.connections == 1


async def test_a_connection_that_is_closed_makes_room_for_another(monkeypatch):
    monkeypatch.setattr(module, "MAX_PER_HOST", 1)

    async def talk(peer):
        await peer.request()
        await peer.say(OK if peer.number else CHUNKED)
        await peer.closed()

    async with (
        serving(talk) as (server, upstream),
        trio.open_nursery() as nursery,
        upstream.call(Call(server.url, "/x", b"")),
    ):
        nursery.start_soon(ask, upstream, server)
        await wait_all_tasks_blocked()
        assert server.connections == 1


async def test_the_wait_for_a_connection_ends(monkeypatch):
    monkeypatch.setattr(module, "MAX_PER_HOST", 1)
    monkeypatch.setattr(module, "CONNECTION_WAIT_SECONDS", 0.05)
    async with serving(answering) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as first:
            with pytest.raises(Overloaded, match="in use"):
                await ask(upstream, server)
            with trio.move_on_after(0.01):  # nor does one who leaves before it keep a place
                await ask(upstream, server)
            await first.read(10)
        assert await ask(upstream, server) == b"ok"


async def test_a_connect_that_fails_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(module, "MAX_PER_HOST", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with PooledUpstream() as upstream:
        for _ in range(3):
            with pytest.raises(Refused):
                async with upstream.call(Call(f"http://127.0.0.1:{port}", "/x", b"")):
                    pass


async def test_running_out_of_descriptors_is_not_the_neurons_fault(monkeypatch):
    async def none_left(*_):
        raise OSError(errno.EMFILE, "none left")

    async with serving(answering) as (server, upstream):
        with monkeypatch.context() as patch:
            patch.setattr(module, "connect", none_left)
            with pytest.raises(Overloaded, match="no more connections"):
                await ask(upstream, server)
        assert await ask(upstream, server) == b"ok"


async def test_a_pooled_connection_that_ends_late_was_not_stale(mock_clock, monkeypatch):
    """The neuron has worked on the request before it hung up: it is not asked again."""
    asked = []

    async def talk(peer):
        await peer.request()
        await peer.say(OK)
        if await peer.request():
            asked.append(peer.number)
            mock_clock.jump(module.STALE_SECONDS + 1)

    async with serving(talk, stall=60) as (server, upstream):
        assert await ask(upstream, server) == b"ok"
        with pytest.raises(Refused):
            await ask(upstream, server)
        assert (asked, server.connections) == ([0], 1)


async def test_nothing_waits_for_more_to_send():
    """Without TCP_NODELAY a stream through a gateway loses 40 ms."""
    async with (
        serving(answering) as (server, upstream),
        upstream.call(Call(server.url, "/x", b"")) as answer,
    ):
        sock = answer.connection._sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_leaving_the_pool_closes_every_connection_even_when_cancelled():
    closed = []

    async def talk(peer):
        await peer.request()
        await peer.say(OK)
        await peer.closed()
        closed.append(peer.number)

    async with serving(talk) as (server, _):
        with trio.CancelScope() as scope:
            async with PooledUpstream() as upstream:
                call = Call(server.url, "/x", b"")
                async with upstream.call(call) as a, upstream.call(call) as b:
                    await a.read(10)
                    await b.read(10)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert sorted(closed) == [0, 1]


# Answers


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ((OK,), b"ok"),
        (tuple(OK[i : i + 1] for i in range(len(OK))), b"ok"),
        ((b"HTTP/1.1 100 Continue\r\nx: 1\r\n\r\n", OK), b"ok"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + OK,), b"ok"),
        ((b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"close"), b"until close"),
        ((b"HTTP/1.0 200 OK\r\n\r\nold",), b"old"),
        ((CHUNKED + b"2\r\nab\r\n1;x=y\r\nc\r\n", b"0\r\nt: 1\r\n\r\n"), b"abc"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), b""),
    ],
    ids=["whole", "bytewise", "interim", "interim-joined", "close", "http10", "chunked", "none"],
)
async def test_an_answer_is_read_whole_however_it_is_delimited(parts, body):
    async with serving(saying(*parts)) as (server, upstream):
        assert await ask(upstream, server) == body


async def test_status_and_headers_are_the_final_ones():
    parts = b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n", OK.replace(b"200", b"503", 1)
    async with (
        serving(saying(*parts)) as (server, upstream),
        upstream.call(Call(server.url, "/x", b"")) as response,
    ):
        assert (response.status, dict(response.headers)) == (503, {"content-length": "2"})


async def test_a_body_comes_as_it_arrives():
    go_on = trio.Event()

    async def talk(peer):
        await peer.request()
        await peer.say(CHUNKED + b"1\r\na\r\n")
        await go_on.wait()
        await peer.say(b"1\r\nb\r\n0\r\n\r\n")

    async with (
        serving(talk) as (server, upstream),
        upstream.call(Call(server.url, "/x", b"")) as response,
    ):
        assert await response.receive() == b"a"
        go_on.set()
        assert await response.receive() == b"b"
        assert await response.receive() == b""
        assert await response.receive() == b""


HOSTILE = {
    "garbage": (b"\x16\x03\x01 what is this\r\n\r\n",),
    "no-status": (b"HTTP/1.1\r\n\r\n",),
    "half-head": (b"HTTP/1.1 200 OK\r\ncontent-le",),
    "giant-head": (
        b"HTTP/1.1 200 OK\r\n",
        *[b"x-%d: %b\r\n" % (i, b"y" * 8000) for i in range(20)],
    ),
    "endless-interim": (b"HTTP/1.1 100 Continue\r\n\r\n" * 6000,),
    "short-length": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",),
    "short-chunked": (CHUNKED + b"5\r\nabc",),
    "no-last-chunk": (CHUNKED + b"3\r\nabc\r\n",),
    "bad-chunk": (CHUNKED + b"zz\r\nabc\r\n",),
    "bad-length": (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",),
    "two-lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",),
    "too-long": (b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000,),
    "too-long-until-close": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,),
    "endless-extension": (CHUNKED + b"1;", *[b"x" * 8000] * 20),
    "endless-trailers": (CHUNKED + b"2\r\nok\r\n0\r\n", *[b"x: %b\r\n" % (b"y" * 8000)] * 20),
    "two-framings": (CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\nok"),),
    "giant-chunk": (CHUNKED + b"ffffffffffffffffff\r\nok",),
    "space-in-name": (b"HTTP/1.1 200 OK\r\ncontent length: 2\r\n\r\nok",),
    "nul": (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok",),
    "upgrade": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n\x00",),
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_answer_is_broken_never_hangs_and_is_not_pooled(parts):
    async with serving(saying(*parts)) as (server, upstream):
        with pytest.raises(Broken):
            await ask(upstream, server)
        assert upstream.idle_connections == 0
        await server.left.wait()


@pytest.mark.parametrize("joined", [True, False])
async def test_of_two_answers_to_one_request_only_the_first_counts(joined):
    second = b"HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\nsecond"
    parts = (OK + second,) if joined else (OK, second)
    async with serving(saying(*parts, stay=True)) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as response:
            await wait_all_tasks_blocked()
            assert await response.read(100) == b"ok"
            assert response.status == 200
        if joined:
            assert upstream.idle_connections == 0
        else:
            await wait_all_tasks_blocked()
        assert await ask(upstream, server) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("more", [b"x", b"\r\n\r\nxyz", b"\0" * 100, OK[:20]])
async def test_what_follows_an_answer_does_not_spoil_it_but_its_connection(more):
    async with serving(saying(OK + more, stay=True)) as (server, upstream):
        assert await ask(upstream, server) == b"ok"
        assert await ask(upstream, server) == b"ok"
        assert server.connections == 2


async def test_trailers_are_no_headers():
    parts = CHUNKED, b"2\r\nok\r\n0\r\ncontent-type: evil\r\n\r\n"
    async with (
        serving(saying(*parts)) as (server, upstream),
        upstream.call(Call(server.url, "/x", b"")) as response,
    ):
        assert await response.read(10) == b"ok"
        assert "content-type" not in response.headers


async def test_a_body_of_the_smallest_chunks_is_read_whole():
    async with serving(saying(CHUNKED, b"1\r\nx\r\n" * 30_000, b"0\r\n\r\n")) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as response:
            assert await response.read(30_000) == b"x" * 30_000
        assert upstream.idle_connections == 1


@pytest.mark.parametrize("end", [b"200\r\n" + b"x" * 512 + b"\r\n", b"no chunk\r\n", b""])
async def test_the_error_of_a_large_answer_does_not_hold_it(end):
    """It lives until the collector finds it in its cycle of frames, which may take minutes."""
    large = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    async with serving(saying(CHUNKED, *[large] * 3, end)) as (server, upstream):
        with pytest.raises(Broken) as raised:
            async with upstream.call(Call(server.url, "/x", b"")) as response:
                await response.read(3 * 0x8000)
    trace, held = raised.tb, 0
    while trace is not None:
        values = list(trace.tb_frame.f_locals.values())
        held += sum(len(value) for value in values if isinstance(value, bytearray))
        trace = trace.tb_next
    assert held == 0


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"1\r\na\r\n"])
async def test_a_server_that_falls_silent_is_given_up(said):
    async with serving(saying(said, stay=True), stall=0.05) as (server, upstream):
        with pytest.raises(Broken, match="silent"):
            await ask(upstream, server)
        await server.left.wait()
        assert upstream.idle_connections == 0


async def test_a_server_that_takes_no_data_is_given_up():
    async def talk(peer):
        await trio.sleep_forever()

    async with serving(talk, stall=0.05) as (server, upstream):
        with pytest.raises(Broken, match="took no data"):
            async with upstream.call(Call(server.url, "/x", b"x" * (32 << 20))):
                pass


async def test_an_answer_given_before_the_body_was_read_is_heard():
    async def talk(peer):
        await peer.stream.receive_some(1000)
        await peer.say(OK.replace(b"200", b"413", 1))
        await peer.stream.send_eof()
        await peer.closed()

    async with (
        serving(talk) as (server, upstream),
        upstream.call(Call(server.url, "/x", b"x" * (4 << 20))) as response,
    ):
        assert response.status == 413


async def test_one_who_is_silent_does_not_take_others_with_it():
    talking = trio.Event()

    async def talk(peer):
        await peer.request()
        await peer.say(CHUNKED)
        if peer.number == 0:
            await peer.closed()
        while not talking.is_set():
            await peer.say(b"1\r\na\r\n")
            await trio.sleep(0.01)
        await peer.say(b"0\r\n\r\n")

    async with serving(talk, stall=0.1) as (server, upstream):
        call = Call(server.url, "/x", b"")
        async with upstream.call(call) as silent, upstream.call(call) as other:
            with pytest.raises(Broken, match=r"silent for 0\.1 s"):
                await silent.receive()
            talking.set()
            while await other.receive():
                pass
            assert other.complete


async def test_time_in_which_nobody_reads_is_not_the_neurons():
    async with (
        serving(saying(CHUNKED + b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"), stall=0.05) as (
            server,
            upstream,
        ),
        upstream.call(Call(server.url, "/x", b"")) as response,
    ):
        assert await response.receive() == b"a"
        await trio.sleep(0.15)
        assert await response.receive() == b"b"


async def test_no_answer_at_all_is_a_refusal():
    async with serving(saying()) as (server, upstream):
        with pytest.raises(Refused):
            await ask(upstream, server)


async def test_no_listener_is_a_refusal():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with PooledUpstream() as upstream:
        with pytest.raises(Refused):
            async with upstream.call(Call(f"http://127.0.0.1:{port}", "/x", b"")):
                pass


# Leaving


async def test_leaving_before_the_end_closes_the_connection():
    async with serving(saying(CHUNKED + b"1\r\na\r\n", stay=True)) as (server, upstream):
        async with upstream.call(Call(server.url, "/x", b"")) as response:
            assert await response.receive() == b"a"
        await server.left.wait()
        assert upstream.idle_connections == 0


async def silent(peer):
    await peer.closed()


async def in_head(peer):
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\n")
    await peer.closed()


async def in_body(peer):
    await peer.request()
    await peer.say(CHUNKED + b"1\r\na\r\n")
    await peer.closed()


async def deaf(peer):
    await wait_all_tasks_blocked(0.05)
    await peer.closed()


@pytest.mark.parametrize(
    ("talk", "size"), [(deaf, 32 << 20), (silent, 2), (in_head, 2), (in_body, 2)]
)
async def test_a_cancelled_call_closes_its_connection(talk, size):
    async with serving(talk) as (server, upstream):
        call = Call(server.url, "/x", b"x" * size)

        async def caller():
            async with upstream.call(call) as response:
                await response.read(100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            while not server.connections:
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
        await server.left.wait()
        assert upstream.idle_connections == 0


async def test_a_call_cancelled_while_it_connects_leaves_no_socket():
    with socket.socket() as full:  # its backlog is full, so that a connect hangs
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        async with PooledUpstream() as upstream:
            call = Call(f"http://127.0.0.1:{full.getsockname()[1]}", "/x", b"")
            before = len(os.listdir("/dev/fd"))
            with trio.move_on_after(0.05) as scope:
                async with upstream.call(call):
                    pass
            assert scope.cancelled_caught
            assert len(os.listdir("/dev/fd")) == before
        for each in waiting:
            each.close()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a key and of its certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return key, certificate


@asynccontextmanager
async def serving_tls(certificate, talk):
    key, chain = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    connections = []

    async def handle(stream):
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        connections.append(secure)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await talk(Peer(secure, len(connections)))
        await trio.aclose_forcefully(secure)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        with trio.fail_after(10):
            async with PooledUpstream(0.2) as upstream:
                port = listeners[0].socket.getsockname()[1]
                yield f"https://127.0.0.1:{port}", upstream, connections
        nursery.cancel_scope.cancel()


async def test_over_tls_connections_are_kept_and_looked_at(certificate):
    async with serving_tls(certificate, answering) as (url, upstream, connections):
        upstream._tls = ssl.create_default_context(cafile=str(certificate[1]))
        for _ in range(3):
            async with upstream.call(Call(url, "/x", b"{}")) as response:
                assert await response.read(10) == b"ok"
        assert (len(connections), upstream.idle_connections) == (1, 1)
        await trio.aclose_forcefully(connections[0])  # while it lies idle
        async with upstream.call(Call(url, "/x", b"{}")) as response:
            assert await response.read(10) == b"ok"
        assert len(connections) == 2


async def test_over_tls_silence_is_bounded(certificate):
    async with serving_tls(certificate, silent) as (url, upstream, _):
        upstream._tls = ssl.create_default_context(cafile=str(certificate[1]))
        with pytest.raises(Broken, match="silent"):
            async with upstream.call(Call(url, "/x", b"{}")):
                pass


async def test_a_certificate_that_nobody_vouches_for_is_a_refusal(certificate):
    async with serving_tls(certificate, silent) as (url, upstream, connections):
        before = len(os.listdir("/dev/fd"))
        with pytest.raises(Refused):
            async with upstream.call(Call(url, "/x", b"{}")):
                pass
        await wait_all_tasks_blocked()
        assert len(os.listdir("/dev/fd")) == before
        assert len(connections) == 1


# What is sent


async def test_a_request_is_written_as_http():
    seen = []

    async def talk(peer):
        seen.append(await peer.request())
        await peer.say(OK)

    async with serving(talk) as (server, upstream):
        call = Call(server.url + "/base/", "/x", b"{}", {"x-a": "b"}, method="PUT")
        async with upstream.call(call) as response:
            await response.read(10)
        host = server.url.removeprefix("http://").encode()
        assert seen[0].split(b"\r\n") == [
            b"PUT /base/x HTTP/1.1",
            b"host: " + host,
            b"content-length: 2",
            b"content-type: application/json",
            b"x-a: b",
            b"",
            b"{}",
        ]


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b", "€"])
async def test_a_header_that_would_be_two_is_never_sent(value):
    async with serving(answering) as (server, upstream):
        with pytest.raises(ValueError, match="control character"):
            await ask(upstream, server, headers={"x-request-id": value})
        assert server.connections == 0
