"""The connection under the fast lane: a plain socket, or any stream of trio's.

A socket is written to without a task switch where the client takes the data at once, which is
nearly always. What cannot be written so (TLS, a stream of a test) goes the long way round.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import attrs
import trio

READ_SIZE = 64 * 1024
LINGER_SECONDS = 2.0  # for a client to read our last words while it still talks


class Link(Protocol):
    """One connection. BrokenResourceError when it broke.

    ``gone`` is called when a read meets the end within a request.
    """

    gone: Callable[[], None]

    @property
    def peer(self) -> str | None:
        """The other side's address."""
        ...

    @property
    def socket(self) -> socket.socket | None:
        """The socket beneath, where there is one."""
        ...

    async def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    async def receive_more(self) -> bytes:
        """The next bytes of a request; at the end, cancels what it is called by."""
        ...

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what the other side takes at once; how many bytes that were."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of *data*."""
        ...

    def send_later(self, send: Callable[[], Any]) -> None:
        """See to it that *send*, which is async, is called soon, if `send_now` never sends."""
        ...

    def stream(self) -> Any:
        """The connection as trio's stream, for hypercorn."""
        ...

    async def linger(self) -> None:
        """Say that nothing more comes, and let the other side finish, for a while: closing in the
        face of unread data resets the connection, and may destroy what was last sent."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


@attrs.define(eq=False)
class SocketLink:
    """Over *sock*, which it takes over. One task reads, one writes at a time."""

    sock: socket.socket
    gone: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    _stream: trio.SocketStream = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # makes it non-blocking, and sets TCP_NODELAY: otherwise small frames wait for an
        # acknowledgement that the client delays, 44 ms each (`reference/field.md` 2)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.sock))

    @property
    def peer(self) -> str | None:
        try:
            return str(self.sock.getpeername()[0])
        except OSError:
            return None

    @property
    def socket(self) -> socket.socket | None:
        return self.sock

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                return self.sock.recv(READ_SIZE)
            except BlockingIOError:
                pass
            except OSError as exc:
                raise trio.BrokenResourceError from exc

    async def receive_more(self) -> bytes:
        return await _more(self)

    def send_now(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise trio.BrokenResourceError from exc

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)[self.send_now(data) :]
        while rest:
            await trio.lowlevel.wait_writable(self.sock)
            rest = rest[self.send_now(rest) :]

    def send_later(self, send: Callable[[], Any]) -> None:
        """What the socket does not take now, it takes with what comes next."""

    def stream(self) -> trio.SocketStream:
        return self._stream

    async def linger(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        await _read_out(self)

    def close(self) -> None:
        self._stream.socket.close()


@attrs.define(eq=False)
class StreamLink:
    """Over any stream; *nursery* has to outlive it."""

    _stream: Any
    nursery: trio.Nursery
    peer: str | None = None
    socket: socket.socket | None = None
    gone: Callable[[], None] = attrs.field(default=lambda: None, init=False)

    async def receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError from exc

    async def receive_more(self) -> bytes:
        return await _more(self)

    def send_now(self, data: bytes | memoryview) -> int:
        return 0

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError from exc

    def send_later(self, send: Callable[[], Any]) -> None:
        self.nursery.start_soon(send)

    def stream(self) -> Any:
        return self._stream

    async def linger(self) -> None:
        send_eof = getattr(self._stream, "send_eof", None)  # TLS has no half-closed connections
        if send_eof is not None:
            await send_eof()
            await _read_out(self)

    def close(self) -> None:
        self.nursery.start_soon(trio.aclose_forcefully, self._stream)


async def _more(link: Link) -> bytes:
    try:
        data = await link.receive()
    except trio.BrokenResourceError:
        data = b""
    if not data:
        link.gone()
        await trio.lowlevel.checkpoint_if_cancelled()
        raise trio.BrokenResourceError("the client hung up within its request")
    return data


async def _read_out(link: Link) -> None:
    with suppress(trio.BrokenResourceError), trio.move_on_after(LINGER_SECONDS):
        while await link.receive():
            pass


class Prefetched:
    """A stream with bytes put back in front of it."""

    def __init__(self, stream: Any, data: bytes) -> None:
        self._stream = stream
        self._data = data

    def __getattr__(self, name: str) -> Any:
        # What hypercorn asks for beyond this (`socket`, and whether there is a TLS handshake to be
        # done, by the absence of its method) is the stream's own business.
        return getattr(self._stream, name)

    async def receive_some(self, limit: int | None = None) -> bytes:
        if self._data:
            await trio.lowlevel.checkpoint()
            data, self._data = self._data, b""
            return data
        return bytes(await self._stream.receive_some(limit))
