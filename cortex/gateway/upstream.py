"""The data path's HTTP/1.1 client: pooled connections on trio's sockets, parsed by httptools.

httpx costs 2 ms of CPU a request and collapses under concurrency (`reference/field.md` 2), so
inference requests go through here; the control plane keeps httpx. `Upstream` is the interface, so
that the transport can be replaced.

There is no total timeout: a connect timeout, and a bound on the silence between two reads.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from math import inf
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import attrs
import trio

from cortex.errors import Overloaded
from cortex.gateway.connection import Connection, Lost, connect
from cortex.gateway.upstream_answer import Broken, Refused, UpstreamAnswer
from cortex.service import logs
from cortex.service.serve import EXHAUSTED

__all__ = ["Broken", "Call", "PooledUpstream", "Refused", "Upstream", "UpstreamResponse"]

CONNECT_SECONDS = 5.0
MAX_PER_HOST = 512  # connections; a neuron's own queue is far shorter, so only a leak gets here
CONNECTION_WAIT_SECONDS = 5.0
MAX_IDLE_PER_HOST = 128
IDLE_SECONDS = 30.0  # below the 75 s after which a neuron closes an idle connection
# A connection that the peer closed while it lay idle fails at once. One that fails later has been
# used, and perhaps it was the request that ended it: that is not done twice to one neuron.
STALE_SECONDS = 1.0
MAX_HEADS = 256  # remembered beginnings of requests

log = logs.get("gateway.upstream")

Where = tuple[str, str, int]  # scheme, host, port


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
class _Host:
    """The connections to one place."""

    idle: deque[Connection] = attrs.field(factory=deque)
    open: int = 0  # idle, in use, or being made
    waiting: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


class _Calling(AbstractAsyncContextManager[UpstreamResponse]):
    """One call. A class, since a generator would cost more than a socket's read."""

    __slots__ = ("_answer", "_call", "_host", "_pool")

    def __init__(self, pool: PooledUpstream, call: Call) -> None:
        self._pool = pool
        self._call = call

    async def __aenter__(self) -> UpstreamResponse:
        self._host, self._answer = await self._pool.begin(self._call)
        return self._answer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.end(self._host, self._answer, reusable=kind is None and self._answer.reusable)


@attrs.define(eq=False)
class PooledUpstream:
    """Keeps idle connections per endpoint. Its owner runs it inside ``async with``."""

    stall_seconds: float = 300.0
    _hosts: dict[Where, _Host] = attrs.field(factory=dict, init=False)
    _heads: dict[tuple[str, str, str], tuple[Where, bytes]] = attrs.field(factory=dict, init=False)
    _tls: ssl.SSLContext | None = attrs.field(default=None, init=False)
    _answers: set[UpstreamAnswer] = attrs.field(factory=set, init=False)  # under way
    _busy: trio.Event = attrs.field(factory=trio.Event, init=False)  # there are some
    _watching: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _open: AbstractAsyncContextManager[trio.Nursery] | None = attrs.field(default=None, init=False)

    async def __aenter__(self) -> PooledUpstream:
        self._open = trio.open_nursery()
        nursery = await self._open.__aenter__()
        nursery.start_soon(self._watch, name="connections to neurons")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self._hosts.values():
            while host.idle:
                host.idle.pop().close()  # without a checkpoint, which might be the last
        self._hosts.clear()
        self._watching.cancel("the pool is closed")
        assert self._open is not None
        await self._open.__aexit__(None, None, None)

    @property
    def idle_connections(self) -> int:
        return sum(len(host.idle) for host in self._hosts.values())

    def call(self, call: Call) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send *call* and give its answer once the head is there. Raises `Refused`, `Broken`, and
        `Overloaded` when no connection is free."""
        return _Calling(self, call)

    async def begin(self, call: Call) -> tuple[_Host, UpstreamAnswer]:
        """The answer to *call* and where it came from, for `end`."""
        where, message = self._message(call)
        host = self._hosts.get(where)
        if host is None:
            host = self._hosts[where] = _Host()
        return host, await self._exchange(where, host, message)

    def end(self, host: _Host, answer: UpstreamAnswer, *, reusable: bool) -> None:
        self._answers.discard(answer)
        if reusable:
            self._keep(host, answer.connection)
        else:
            self._close(host, answer.connection)

    async def _exchange(self, where: Where, host: _Host, message: bytes) -> UpstreamAnswer:
        """Send *message*, on a pooled connection first; one that turns out stale is replaced, once
        and by a fresh one: a request that makes a neuron hang up must not use up the pool."""
        connection = await self._take(host)
        if connection is not None:
            asked_at = trio.current_time()
            try:
                return await self._ask(host, connection, message)
            except Refused:
                if trio.current_time() - asked_at > STALE_SECONDS:
                    raise
            host.open += 1  # the place of the one that has just been closed
        return await self._ask(host, await self._connect(where, host), message)

    async def _ask(self, host: _Host, connection: Connection, message: bytes) -> UpstreamAnswer:
        answer = UpstreamAnswer(connection, self.stall_seconds)
        self._answers.add(answer)
        self._busy.set()
        try:
            answer.waiting_since = trio.current_time()
            try:
                await connection.send(message)
            except Lost:
                if answer.stalled:
                    raise Broken(f"the neuron took no data for {self.stall_seconds:g} s") from None
                # It may have answered (413) before it stopped reading.
            await answer.head()
        except BaseException:
            self._answers.discard(answer)
            self._close(host, connection)
            raise
        return answer

    # Connections

    async def _take(self, host: _Host) -> Connection | None:
        """An idle connection, or None and a place for a new one. `Overloaded` when neither comes
        in time."""
        connection = self._idle(host)
        if connection is None and host.open >= MAX_PER_HOST:
            connection = await self._wait(host)
        if connection is None:
            host.open += 1
        return connection

    async def _wait(self, host: _Host) -> Connection | None:
        """Return when a connection is idle, with it, or when there is room for one."""
        with trio.move_on_after(CONNECTION_WAIT_SECONDS):
            while host.open >= MAX_PER_HOST:
                await host.waiting.park()
                connection = self._idle(host)
                if connection is not None:
                    return connection
            return None
        raise Overloaded("every connection to the neuron is in use")

    def _idle(self, host: _Host) -> Connection | None:
        now = trio.current_time()
        while host.idle:
            connection = host.idle.pop()
            if now - connection.idle_since < IDLE_SECONDS and connection.quiet():
                return connection
            self._close(host, connection)
        return None

    def _keep(self, host: _Host, connection: Connection) -> None:
        idle, now = host.idle, trio.current_time()
        # The last one in is the first one out, so those that a busier time left behind lie at the
        # other end, where nobody comes for them.
        while idle and now - idle[0].idle_since >= IDLE_SECONDS:
            self._close(host, idle.popleft())
        if len(idle) >= MAX_IDLE_PER_HOST or self._watching.cancel_called:
            self._close(host, connection)
            return
        connection.idle_since = now
        idle.append(connection)
        host.waiting.unpark()

    def _close(self, host: _Host, connection: Connection) -> None:
        connection.close()
        host.open -= 1
        host.waiting.unpark()

    async def _connect(self, where: Where, host: _Host) -> Connection:
        """A connection in the place that was taken for it."""
        scheme, name, port = where
        try:
            if scheme == "https" and self._tls is None:
                self._tls = ssl.create_default_context()
            with trio.fail_after(CONNECT_SECONDS):
                return await connect(name, port, self._tls if scheme == "https" else None)
        except BaseException as exc:
            host.open -= 1
            host.waiting.unpark()
            if isinstance(exc, trio.TooSlowError):
                waited = f"{CONNECT_SECONDS:g} s"
                raise Refused(f"no connection to the neuron within {waited}") from None
            if isinstance(exc, OSError) and exc.errno in EXHAUSTED:  # ours: no word on the neuron
                cause = os.strerror(exc.errno or 0)
                log.error("no connection to a neuron can be made", cause=cause)
                raise Overloaded("the gateway can open no more connections") from exc
            if isinstance(exc, OSError | trio.BrokenResourceError):
                raise Refused("the neuron refused the connection") from exc
            raise

    # Time

    async def _watch(self) -> None:
        """Close the connections whose peer has been silent, or taken nothing, for too long, and
        those that have been idle for too long. One task for all: a cancel scope for each read would
        cost 5 us of CPU a token."""
        with self._watching:
            while True:
                if not self._answers:
                    self._busy = trio.Event()
                    with trio.move_on_after(IDLE_SECONDS if self._hosts else inf):
                        await self._busy.wait()
                now = trio.current_time()
                self._drop_idle(now)
                for answer in self._answers:
                    if now - answer.waiting_since >= self.stall_seconds:
                        answer.stalled, answer.waiting_since = True, inf
                        answer.connection.close()
                if self._answers:
                    oldest = min(answer.waiting_since for answer in self._answers)
                    due = min(oldest, now) + self.stall_seconds
                    await trio.sleep_until(min(due, now + IDLE_SECONDS))

    def _drop_idle(self, now: float) -> None:
        """Close what has been idle for too long, and forget places without a connection."""
        for where, host in list(self._hosts.items()):
            while host.idle and now - host.idle[0].idle_since >= IDLE_SECONDS:
                self._close(host, host.idle.popleft())
            if not host.open and not host.waiting:
                del self._hosts[where]

    # What is sent

    def _message(self, call: Call) -> tuple[Where, bytes]:
        """Where *call* goes and its bytes. ValueError for a header that would be another line."""
        key = call.endpoint, call.method, call.path
        known = self._heads.get(key)
        if known is None:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            known = self._heads[key] = _where(call.endpoint), _head(call)
        where, head = known
        lines = [f"content-length: {len(call.body)}\r\n"]
        if "content-type" not in call.headers:
            lines.append("content-type: application/json\r\n")
        for name, value in call.headers.items():
            if not (value.isascii() and value.isprintable()) and not _harmless(value):
                raise ValueError(f"header {name} holds a control character")
            lines.append(f"{name}: {value}\r\n")
        return where, b"%b%b\r\n%b" % (head, "".join(lines).encode("latin-1"), call.body)


def _where(endpoint: str) -> Where:
    parts = urlsplit(endpoint)
    scheme = parts.scheme or "http"
    return scheme, parts.hostname or "", parts.port or (443 if scheme == "https" else 80)


def _head(call: Call) -> bytes:
    base = urlsplit(call.endpoint)
    target, host = f"{base.path.rstrip('/')}{call.path}", base.netloc.rpartition("@")[2]
    return f"{call.method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("latin-1")


def _harmless(value: str) -> bool:
    return all(32 <= ord(c) <= 255 for c in value)
