from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
import trio.testing

from cortex.service.link import Prefetched, SocketLink, StreamLink

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


@pytest.fixture
async def pair():
    """Our link, and the client's socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    link = SocketLink(server)
    with client:
        yield link, client
    link.close()


async def test_small_writes_are_not_collected(pair):
    link, _ = pair
    assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not link.sock.getblocking()


async def test_more_than_the_client_takes_at_once_arrives_whole(pair):
    link, client = pair
    data = os.urandom(4 << 20)
    received = bytearray()

    async def read() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        while len(received) < len(data):
            received.extend(await stream.receive_some(1 << 16))

    sent = link.send_now(data)
    assert sent < len(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await link.send(data[sent:])
    assert received == data


async def test_an_end_is_empty_and_within_a_request_it_cancels(pair):
    link, client = pair
    client.sendall(b"hello")
    assert await link.receive() == b"hello"
    client.close()
    assert await link.receive() == b""
    with trio.CancelScope() as scope:
        link.gone = scope.cancel
        await link.receive_more()
    assert scope.cancelled_caught


async def test_a_reset_is_broken_for_readers_and_writers(pair):
    link, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    with pytest.raises(trio.BrokenResourceError):
        await link.receive()
    with pytest.raises(trio.BrokenResourceError):
        await link.send(b"x" * (1 << 20))


async def test_a_closed_link_knows_no_peer(pair):
    link, client = pair
    assert link.peer == client.getsockname()[0]
    link.close()
    assert link.peer is None


async def test_lingering_lets_the_client_read_our_last_words(pair):
    link, client = pair
    client.sendall(b"x" * 100_000)  # unread when we close: it would reset the connection
    await link.send(b"last words")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.linger)
        await trio.testing.wait_all_tasks_blocked()
        client.shutdown(socket.SHUT_WR)
    link.close()
    assert client.recv(100) == b"last words"
    assert client.recv(100) == b""


async def test_any_stream_will_do(nursery):
    theirs, ours = trio.testing.memory_stream_pair()
    link = StreamLink(ours, nursery, "peer")
    await theirs.send_all(b"hello")
    assert await link.receive() == b"hello"
    assert link.send_now(b"x") == 0
    await link.send(b"answer")
    assert await theirs.receive_some() == b"answer"
    link.close()
    assert await theirs.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await link.receive()


async def test_bytes_that_were_put_back_come_first():
    theirs, ours = trio.testing.memory_stream_pair()
    stream = Prefetched(ours, b"first")
    await theirs.send_all(b"second")
    assert await stream.receive_some(100) == b"first"
    assert await stream.receive_some(3) == b"sec"
    assert await stream.receive_some() == b"ond"
    await stream.send_all(b"answer")
    assert await theirs.receive_some() == b"answer"
    with pytest.raises(AttributeError):
        stream.do_handshake  # noqa: B018 - hypercorn takes what has one for TLS
