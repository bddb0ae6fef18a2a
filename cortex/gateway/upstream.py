"""The data path's HTTP/1.1 client: pooled connections on trio streams, parsed by httptools.

httpx costs 2 ms of CPU a request and collapses under concurrency (`reference/field.md` 2), so
inference requests go through here; the control plane keeps httpx. `Upstream` is the interface, so
that the transport can be replaced.

There is no total timeout: a connect timeout, and a bound on the silence between two reads.
"""

from __future__ import annotations

import select
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

import attrs
import httptools
import trio

from cortex.errors import UpstreamError
from cortex.service import logs

CONNECT_SECONDS = 5.0
MAX_HEAD_BYTES = 64 * 1024
MAX_IDLE_PER_HOST = 128
IDLE_SECONDS = 30.0  # below the 75 s after which a neuron closes an idle connection
READ_SIZE = 64 * 1024

log = logs.get("gateway.upstream")


class Refused(UpstreamError):
    """No connection, or one that ended before an answer's first byte: safe to try elsewhere."""


class Broken(UpstreamError):
    """The answer ended early, stalled, or was no HTTP."""


@attrs.frozen
class Call:
    """One request: ``endpoint`` is a base URL, ``path`` begins with a slash."""

    endpoint: str
    path: str
    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict)
    method: str = "POST"


class UpstreamResponse(Protocol):
    """An answer whose head has arrived."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def complete(self) -> bool:
        """Whether the body's end has arrived."""
        ...

    @property
    def at_hand(self) -> bool:
        """Whether the next `receive` has something to give without waiting."""
        ...

    async def receive(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises `Broken`."""
        ...

    async def read(self, limit: int) -> bytes:
        """The whole body, which must not exceed *limit* bytes. Raises `Broken`."""
        ...


class Upstream(Protocol):
    """Sends calls. Leaving the block before the body's end closes the connection, which is how
    the other side learns that nobody is interested any more."""

    def call(self, call: Call) -> AbstractAsyncContextManager[UpstreamResponse]: ...


@attrs.define(eq=False)
class _Connection:
    stream: trio.abc.Stream
    fd: int
    idle_since: float = 0.0

    def stale(self, now: float) -> bool:
        """Whether the peer has closed it, or sent what nobody asked for, while it lay idle."""
        if now - self.idle_since > IDLE_SECONDS:
            return True
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(0))


@attrs.define(eq=False)
class _Response:
    """httptools' callbacks and the reader of one answer."""

    connection: _Connection
    stall_seconds: float
    headers: dict[str, str] = attrs.field(factory=dict)
    status: int = 0
    complete: bool = False
    head_complete: bool = False
    reusable: bool = False  # whether the connection may carry another call
    _parts: list[bytes] = attrs.field(factory=list)
    _parser: httptools.HttpResponseParser = attrs.field(init=False)
    _head_bytes: int = 0
    _until_close: bool = True

    def __attrs_post_init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer, to a request that nobody has sent
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self.head_complete = True
        self.status = self._parser.get_status_code()
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            self._until_close = False
        if self.status < 200:  # an interim answer; the real one follows
            self.head_complete = False
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        if self.status >= 200 and not self.complete:
            self.complete = True
            # Asked now: the parser forgets how the body was delimited once it is past it.
            self.reusable = not self._until_close and bool(self._parser.should_keep_alive())

    # reading

    @property
    def at_hand(self) -> bool:
        return bool(self._parts)

    async def head(self) -> None:
        """Read until the head is there. `Refused` when the peer closed without a byte."""
        while not self.head_complete:
            data = await self._read_some()
            if not data:
                if self._head_bytes == 0:
                    raise Refused("the neuron closed the connection without an answer")
                raise Broken("the neuron closed the connection within an answer's head")
            self._head_bytes += len(data)
            self._feed(data)
            if not self.head_complete and self._head_bytes > MAX_HEAD_BYTES:
                raise Broken("the neuron's answer has too long a head")

    async def receive(self) -> bytes:
        while not self._parts:
            if self.complete:
                return b""
            data = await self._read_some()
            if data:
                self._feed(data)
            elif self._until_close:
                self.complete = True
            else:
                raise Broken("the neuron closed the connection within an answer")
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return body

    async def read(self, limit: int) -> bytes:
        body = bytearray()
        while data := await self.receive():
            body += data
            if len(body) > limit:
                raise Broken(f"the neuron's answer is larger than {limit} bytes")
        return bytes(body)

    async def _read_some(self) -> bytes:
        try:
            with trio.fail_after(self.stall_seconds):
                return bytes(await self.connection.stream.receive_some(READ_SIZE))
        except trio.TooSlowError:
            raise Broken(f"the neuron was silent for {self.stall_seconds:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if self._head_bytes == 0:
                raise Refused("the connection to the neuron broke before an answer") from exc
            raise Broken("the connection to the neuron broke") from exc

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            raise Broken(f"the neuron's answer is not HTTP: {exc}") from exc


@attrs.define(eq=False)
class PooledUpstream:
    """Keeps idle connections per endpoint. Its owner runs it inside ``async with``."""

    stall_seconds: float = 300.0
    _idle: dict[tuple[str, str, int], deque[_Connection]] = attrs.field(factory=dict, init=False)
    _tls: ssl.SSLContext | None = attrs.field(default=None, init=False)

    async def __aenter__(self) -> PooledUpstream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connections in self._idle.values():
            for connection in connections:
                _close_now(connection)  # without a checkpoint, which might be the last
        self._idle.clear()

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    @asynccontextmanager
    async def call(self, call: Call) -> AsyncIterator[UpstreamResponse]:
        """Send *call* and give its answer once the head is there. Raises `Refused`, `Broken`."""
        where = _where(call.endpoint)
        message = _message(call, where)
        response = await self._exchange(where, message)
        reusable = False
        try:
            yield response
            reusable = response.reusable
        finally:
            if reusable:
                self._keep(where, response.connection)
            else:
                await trio.aclose_forcefully(response.connection.stream)

    async def _exchange(self, where: tuple[str, str, int], message: bytes) -> _Response:
        """Send *message*, on a pooled connection first; one that turns out stale is replaced, once
        and by a fresh one: a request that makes a neuron hang up must not use up the pool."""
        connection = self._take(where)
        if connection is not None:
            try:
                return await self._ask(connection, message)
            except Refused:
                pass
        return await self._ask(await self._connect(where), message)

    async def _ask(self, connection: _Connection, message: bytes) -> _Response:
        response = _Response(connection, self.stall_seconds)
        try:
            try:
                with trio.fail_after(self.stall_seconds):
                    await connection.stream.send_all(message)
            except trio.TooSlowError:
                raise Broken(f"the neuron took no data for {self.stall_seconds:g} s") from None
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it may have answered (413) before it stopped reading
            await response.head()
        except BaseException:
            await trio.aclose_forcefully(connection.stream)
            raise
        return response

    def _take(self, where: tuple[str, str, int]) -> _Connection | None:
        connections, now = self._idle.get(where, deque()), trio.current_time()
        while connections:
            connection = connections.pop()
            if not connection.stale(now):
                return connection
            _close_now(connection)
        return None

    def _keep(self, where: tuple[str, str, int], connection: _Connection) -> None:
        connections, now = self._idle.setdefault(where, deque()), trio.current_time()
        # The last one in is the first one out, so those that a busier time left behind lie at the
        # other end, and nobody else would ever come for them.
        while connections and now - connections[0].idle_since > IDLE_SECONDS:
            _close_now(connections.popleft())
        if len(connections) >= MAX_IDLE_PER_HOST:
            _close_now(connection)
            return
        connection.idle_since = now
        connections.append(connection)

    async def _connect(self, where: tuple[str, str, int]) -> _Connection:
        scheme, host, port = where
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await trio.open_tcp_stream(host, port)
                if scheme != "https":
                    return _Connection(stream, stream.socket.fileno())
                self._tls = self._tls or ssl.create_default_context()
                secure = trio.SSLStream(
                    stream, self._tls, server_hostname=host, https_compatible=True
                )
                try:
                    await secure.do_handshake()
                except BaseException:
                    await trio.aclose_forcefully(secure)
                    raise
                return _Connection(secure, stream.socket.fileno())
        except trio.TooSlowError:
            raise Refused(f"no connection to the neuron within {CONNECT_SECONDS:g} s") from None
        except (OSError, trio.BrokenResourceError) as exc:
            raise Refused("the neuron refused the connection") from exc


def _close_now(connection: _Connection) -> None:
    """Close without a checkpoint; TLS loses its farewell, which an idle connection can spare."""
    stream = connection.stream
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    stream.socket.close()  # type: ignore[attr-defined]


def _where(endpoint: str) -> tuple[str, str, int]:
    parts = urlsplit(endpoint)
    scheme = parts.scheme or "http"
    return scheme, parts.hostname or "", parts.port or (443 if scheme == "https" else 80)


def _message(call: Call, where: tuple[str, str, int]) -> bytes:
    base = urlsplit(call.endpoint)
    lines = [
        f"{call.method} {base.path.rstrip('/')}{call.path} HTTP/1.1",
        f"host: {base.netloc.rpartition('@')[2]}",
        f"content-length: {len(call.body)}",
    ]
    if "content-type" not in call.headers:
        lines.append("content-type: application/json")
    for name, value in call.headers.items():
        if any(ord(c) < 32 or ord(c) > 255 for c in value):
            raise ValueError(f"header {name} holds a control character")
        lines.append(f"{name}: {value}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + call.body
