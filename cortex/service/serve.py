"""Serve an ASGI application on trio: listen, serve, drain."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn
import hypercorn.trio
import trio

from cortex.service import logs

# hypercorn shields its writes from cancellation. Without this bound a client that keeps its
# connection but takes no data would keep the process from ever shutting down.
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

    Takes *listener* over. Reports the base URL once connections are accepted.
    """
    url = url_of(listener)
    config = hypercorn.Config.from_mapping(
        bind=[f"fd://{listener.detach()}"],  # hypercorn closes it
        graceful_timeout=drain_seconds,  # its own default is 3 s
        keep_alive_timeout=KEEP_ALIVE_SECONDS,
        keep_alive_max_requests=1_000_000,
        h11_max_incomplete_size=MAX_HEADER_BYTES,
        include_server_header=False,
        worker_class="trio",
        accesslog=None,
        errorlog=logging.getLogger("hypercorn.error"),
    )
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            await hypercorn.trio.serve(app, config, shutdown_trigger=stop, task_status=task_status)

        await nursery.start(run)
        task_status.started(url)
