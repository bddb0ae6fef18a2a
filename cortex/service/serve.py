"""Serve an ASGI application on trio: listen, serve, drain."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import hypercorn
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from cortex.service import logs
from cortex.service.http11 import Http11Connection

# hypercorn shields its writes from cancellation. Without this bound a client that keeps its
# connection but takes no data would hold a task and its buffers for as long as it likes.
STALLED_CLIENT_MS = 30_000
KEEP_ALIVE_SECONDS = 75.0
MAX_HEADER_BYTES = 64 * 1024  # agents send long lists of betas; nginx's default is 32 KiB
BACKLOG = 1024

log = logs.get("service.serve")


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
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stalled_client_ms)
    return listener


def url_of(listener: socket.socket) -> str:
    """The base URL under which *listener* is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: Any,
    listener: socket.socket,
    *,
    stop: Callable[[], Awaitable[None]],
    drain_seconds: float,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *app* until *stop* returns, then give requests in flight *drain_seconds*.

    Takes *listener* over. Reports the base URL once connections are accepted. Connections are
    hypercorn's, accepting them is ours: hypercorn shields its writes from cancellation, so that its
    own server waits for a client that takes no data until the kernel gives that client up. Here
    what is left after the drain is closed under it.
    """
    connections = _Connections(ASGIWrapper(app), drain_seconds)
    async with trio.open_nursery() as watching:
        async with trio.open_nursery() as handling:
            async with trio.open_nursery() as accepting:
                sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
                accepting.start_soon(
                    partial(
                        trio.serve_listeners,
                        connections.handle,
                        sockets,
                        handler_nursery=handling,
                    )
                )
                task_status.started(url_of(listener))
                await stop()
                accepting.cancel_scope.cancel("asked to stop")
            await connections.drain()
            watching.start_soon(connections.end_after, drain_seconds, handling.cancel_scope)
        watching.cancel_scope.cancel("drained")


class _Connections:
    """The connections that are open, each served by hypercorn."""

    def __init__(self, app: ASGIWrapper, drain_seconds: float) -> None:
        self._app = app
        self._config = hypercorn.Config.from_mapping(
            graceful_timeout=drain_seconds,
            keep_alive_timeout=KEEP_ALIVE_SECONDS,
            keep_alive_max_requests=1_000_000,
            h11_max_incomplete_size=MAX_HEADER_BYTES,
            include_server_header=False,
            worker_class="trio",
            accesslog=None,
            errorlog=logging.getLogger("hypercorn.error"),
        )
        self._context = WorkerContext(None)
        self._open: set[trio.SocketStream] = set()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end. What goes wrong with it is no other one's business."""
        self._open.add(stream)
        try:
            # hypercorn's annotation knows TLS streams only; its code asks which kind it has.
            tcp_stream: Any = stream
            await Http11Connection(
                self._app, self._config, self._context, ConnectionState({}), tcp_stream
            )
        except Exception as exc:
            log.error("connection failed", exc=exc)
        finally:
            self._open.discard(stream)

    async def drain(self) -> None:
        """End idle connections now, the others with the response under way."""
        await self._context.terminated.set()

    async def end_after(self, seconds: float, handling: trio.CancelScope) -> None:
        """After *seconds* cancel what is left, and close the sockets that shielded writes hold."""
        await trio.sleep(seconds)
        log.warning("drain time is over", connections=len(self._open))
        handling.cancel("the drain time is over")
        for stream in list(self._open):
            stream.socket.close()
