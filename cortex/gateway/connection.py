"""One connection to a neuron: bytes out, bytes in.

A plain one works on the socket itself: trio's stream costs 8 us of CPU for a request and its answer
on top of the two system calls, a tenth of what the gateway spends on both in all.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import Protocol

import trio

from cortex.service.silence import BREAKS_IN_SILENCE

READ_SIZE = 64 * 1024


class Lost(Exception):
    """The connection is closed, by either side."""


class Connection(Protocol):
    """`Lost` is raised by `send` and `receive`; a cancelled one leaves the connection unusable."""

    idle_since: float

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """What came, empty at the peer's end of sending."""
        ...

    def quiet(self) -> bool:
        """Whether nothing has come since the last read: no bytes, no end, no error."""
        ...

    def close(self) -> None:
        """At once, without a checkpoint; whoever waits for it gets `Lost`."""
        ...


class PlainConnection:
    """TCP. Owns *sock*, which does not block."""

    __slots__ = ("_fd", "_poller", "_sock", "idle_since")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._poller: select.poll | None = None
        self.idle_since = 0.0

    async def send(self, data: bytes) -> None:
        try:
            sent = self._some(data)
            if sent < len(data):
                await self._rest(memoryview(data)[sent:])
        except (OSError, trio.ClosedResourceError) as exc:
            raise Lost from exc

    async def receive(self) -> bytes:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    return self._sock.recv(READ_SIZE)
                except BlockingIOError:
                    continue
        except (OSError, trio.ClosedResourceError) as exc:
            raise Lost from exc

    def quiet(self) -> bool:
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(self._fd, select.POLLIN)
        return not self._poller.poll(0)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._sock.close()

    def _some(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    async def _rest(self, data: memoryview) -> None:
        while data:
            await trio.lowlevel.wait_writable(self._fd)
            data = data[self._some(data) :]


class SecureConnection:
    """TLS, with the handshake done. Closing it says no farewell, which an idle one can spare."""

    __slots__ = ("_plain", "_stream", "idle_since")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._plain = stream.transport_stream
        self.idle_since = 0.0

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Lost from exc

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Lost from exc

    def quiet(self) -> bool:
        poller = select.poll()
        poller.register(self._plain.socket.fileno(), select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        self._plain.socket.close()


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> Connection:
    """A new connection, encrypted when there is a *tls*. OSError or BrokenResourceError."""
    stream = await trio.open_tcp_stream(host, port)
    try:
        # Answers come in small writes, and so do requests: Nagle's algorithm and a delayed
        # acknowledgement together cost 40 ms.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in BREAKS_IN_SILENCE:
            stream.setsockopt(*option)
        if tls is None:
            plain = socket.socket(fileno=stream.socket.detach())
            plain.setblocking(False)
            return PlainConnection(plain)
        secure = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
        await secure.do_handshake()
        return SecureConnection(secure)
    except BaseException:
        stream.socket.close()
        raise
