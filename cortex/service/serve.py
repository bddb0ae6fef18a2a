"""Serve an ASGI application on trio: listen, serve, drain. Hot routes may take the fast lane."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
import hypercorn
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from cortex.service import logs
from cortex.service.cancellation import DRAIN_OVER
from cortex.service.edge import Edge
from cortex.service.hangup import hangup_watch
from cortex.service.http11 import Http11Connection
from cortex.service.lane import IDLE_SECONDS, Lane
from cortex.service.lane_head import MAX_HEAD_BYTES, HotPaths
from cortex.service.link import Link, SocketLink
from cortex.service.pacer import Pacer
from cortex.service.silence import BREAKS_IN_SILENCE
from cortex.service.tls import Handshakes, Tls

# hypercorn shields its writes from cancellation. Without this bound a client that keeps its
# connection but takes no data would hold a task and its buffers for as long as it likes.
STALLED_CLIENT_MS = 30_000
BACKLOG = 1024
# What accept() raises when the process or the host has run out of something: it may come back.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
EXHAUSTED_SECONDS = 0.1

log = logs.get("service.serve")


@attrs.frozen(eq=False)
class FastRoutes:
    """Routes of *edge* whose POST requests take the fast lane. *edge* is also the application's."""

    edge: Edge
    paths: Iterable[str]


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` in parts; an IPv6 host is in brackets. ValueError when it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)


def listen(address: str, *, stalled_client_ms: int = STALLED_CLIENT_MS) -> socket.socket:
    """A listening socket on *address*; its connections die when their peer takes no data.

    OSError when the address cannot be had.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    for option in BREAKS_IN_SILENCE:  # its connections inherit them
        listener.setsockopt(*option)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_client_ms)
    return listener


def url_of(listener: socket.socket, *, secure: bool = False) -> str:
    """The base URL under which *listener* is reached from this machine; https if *secure*."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def serve(
    app: Any,
    listener: socket.socket,
    *,
    stop: Callable[[], Awaitable[None]],
    drain_seconds: float,
    fast: FastRoutes | None = None,
    tls: Tls | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* until *stop* returns, then give requests in flight *drain_seconds*.

    With *tls* every connection is encrypted, and one that is not is closed.

    Takes *listener* over. Reports the base URL once connections are accepted. Requests to *fast*
    routes are served on our own lane, the others are hypercorn's; accepting connections is ours:
    hypercorn shields its writes from cancellation, so that its own server waits for a client that
    takes no data until the kernel gives that client up. Here what is left after the drain is closed
    under it.
    """
    async with trio.open_nursery() as watching:
        connections = _Connections(app, drain_seconds, fast, tls, watching)
        async with trio.open_nursery() as handling:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(_accept, listener, connections.handle, handling)
                task_status.started(url_of(listener, secure=tls is not None))
                await stop()
                accepting.cancel_scope.cancel("asked to stop")
            await connections.drain()
            watching.start_soon(connections.end_after, drain_seconds, handling.cancel_scope)
        watching.cancel_scope.cancel("drained")


async def _accept(
    listener: socket.socket,
    handle: Callable[[socket.socket], Awaitable[None]],
    handling: trio.Nursery,
) -> None:
    """Accept connections until cancelled, each into a task of its own in *handling*."""
    listener.setblocking(False)
    exhausted = False
    with listener:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except OSError as exc:
                # Others are a connection's own end, before it was accepted.
                if exc.errno in EXHAUSTED:
                    if not exhausted:  # once: a line a try would fill the disk as well
                        cause = os.strerror(exc.errno or 0)
                        log.error("no connection can be accepted", cause=cause)
                    exhausted = True
                    await trio.sleep(EXHAUSTED_SECONDS)
                continue
            if exhausted:
                log.info("connections are accepted again")
                exhausted = False
            handling.start_soon(handle, connection)


class _Connections:
    """The connections that are open. *watching* runs what watches over those of the fast lane."""

    def __init__(
        self,
        app: Any,
        drain_seconds: float,
        fast: FastRoutes | None,
        tls: Tls | None,
        watching: trio.Nursery,
    ) -> None:
        self._app = ASGIWrapper(app)
        self._config = hypercorn.Config.from_mapping(
            graceful_timeout=drain_seconds,
            keep_alive_timeout=IDLE_SECONDS,
            keep_alive_max_requests=1_000_000,
            h11_max_incomplete_size=MAX_HEAD_BYTES,
            include_server_header=False,
            worker_class="trio",
            accesslog=None,
            errorlog=logging.getLogger("hypercorn.error"),
        )
        self._context = WorkerContext(None)
        self._open: set[socket.socket] = set()
        self._handshakes = Handshakes(tls, watching) if tls is not None else None
        self._lane: Lane | None = None
        if fast is not None:
            pacer, hangups = Pacer(), hangup_watch()
            self._lane = Lane(fast.edge, HotPaths(fast.paths), self._cold, pacer, hangups)
            watching.start_soon(pacer.run, name="pacer")
            watching.start_soon(self._lane.run, name="idle connections")
            watching.start_soon(hangups.run, name="hang-up watch")

    async def handle(self, connection: socket.socket) -> None:
        """Serve one connection to its end. What goes wrong with it is no other one's business."""
        self._open.add(connection)
        try:
            link = await self._link(connection)
            if link is None:
                return
            if self._lane is not None:
                await self._lane.handle(link)
            else:
                await self._cold(link.stream())
        except Exception as exc:
            log.error("connection failed", exc=exc)
        finally:
            self._open.discard(connection)
            connection.close()

    async def _link(self, connection: socket.socket) -> Link | None:
        raw = SocketLink(connection)
        return raw if self._handshakes is None else await self._handshakes.secured(raw)

    async def _cold(self, stream: Any) -> None:
        """hypercorn's connection on *stream*."""
        await Http11Connection(self._app, self._config, self._context, ConnectionState({}), stream)

    async def drain(self) -> None:
        """End idle connections now, the others with the response under way."""
        if self._handshakes is not None:
            self._handshakes.drain()
        if self._lane is not None:
            self._lane.drain()
        await self._context.terminated.set()

    async def end_after(self, seconds: float, handling: trio.CancelScope) -> None:
        """After *seconds* cancel what is left, and close the sockets that shielded writes hold."""
        await trio.sleep(seconds)
        log.warning("drain time is over", connections=len(self._open))
        handling.cancel(DRAIN_OVER)
        for connection in list(self._open):
            if connection.fileno() >= 0:
                trio.lowlevel.notify_closing(connection)
                connection.close()
