"""A server that says, byte for byte, what a test wants said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@attrs.define(eq=False)
class Peer:
    """One connection; ``number`` counts from 0."""

    stream: trio.SocketStream
    number: int
    _buffer: bytearray = attrs.field(factory=bytearray)

    async def request(self) -> bytes:
        """The next request with its body; empty when the client has closed."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return b""
        head = bytes(self._buffer[: end + 4])
        length = next(
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(self._buffer) < len(head) + length:
            if not await self._more():
                return b""
        whole = bytes(self._buffer[: len(head) + length])
        del self._buffer[: len(whole)]
        return whole

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def closed(self) -> None:
        """Return when the client has closed."""
        try:
            while await self._more():
                pass
        except trio.BrokenResourceError:
            pass

    async def _more(self) -> bool:
        data = await self.stream.receive_some(1 << 16)
        self._buffer += data
        return bool(data)


@attrs.define(eq=False)
class RawServer:
    """Gives each connection to ``talk`` and closes it when that returns."""

    talk: Callable[[Peer], Awaitable[None]]
    url: str = ""
    connections: int = 0
    left: trio.Event = attrs.field(factory=trio.Event)  # a talk has ended

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        peer = Peer(stream, self.connections)
        self.connections += 1
        try:
            async with stream:
                await self.talk(peer)
        except trio.BrokenResourceError:
            pass
        finally:
            self.left.set()
