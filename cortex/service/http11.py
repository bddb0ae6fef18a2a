"""hypercorn's connection, held to HTTP/1.1.

hypercorn would follow a client into HTTP/2 (an ``Upgrade: h2c``, or the bare preface) and into
WebSockets. Neither is served: HTTP/2 only because nobody has asked for it, over plain TCP least of
all, and an upgrade to a WebSocket gets the edge's 426, with which clients come back over HTTP.
"""

from __future__ import annotations

from typing import Any

import h11
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer


class Http11Connection(TCPServer):
    """Serves one connection."""

    async def _read_data(self) -> None:
        """Called once, when the protocol has been chosen."""
        protocol: Any = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            create = protocol._create_stream

            async def create_stream(event: h11.Request) -> None:
                await create(_not_upgrading(event))

            protocol._check_protocol = _stay  # type: ignore[method-assign]
            protocol._create_stream = create_stream  # type: ignore[assignment, method-assign]
        await super()._read_data()
        # A client that has left without a request would otherwise hold its socket until the
        # keep-alive ends (so do the probes of load balancers).
        await self.idle_task.stop()


async def _stay(event: h11.Request) -> None:
    """In place of the look at whether to change to HTTP/2."""


def _not_upgrading(event: h11.Request) -> h11.Request:
    """*event* as it is, but for the header that makes hypercorn prepare a WebSocket."""
    if all(name != b"upgrade" for name, _ in event.headers):
        return event
    headers = [(name, value) for name, value in event.headers if name != b"connection"]
    return h11.Request(
        method=event.method,
        target=event.target,
        headers=headers,
        http_version=event.http_version,
    )
