"""Certificates for 127.0.0.1 that only those trust who are told to, and a port that shows one.

They were made with openssl to last until 2100 and longer, so that no test needs it.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

FOLDER = Path(__file__).parent / "certificates"
Talk = Callable[[trio.abc.Stream], Awaitable[None]]


def pem(name: str) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key in one file: ``one`` or ``two``, or
    ``brief``, which ends twenty years earlier. ``locked`` is the key of ``one`` behind a
    passphrase."""
    return FOLDER / f"{name}.pem"


def trusting(name: str) -> ssl.SSLContext:
    """A client's context that trusts `pem` *name* alone."""
    return ssl.create_default_context(cafile=pem(name))


async def serve_tls(
    file: Path, talk: Talk, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Give each connection to *talk*, through TLS; starts with its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)

    async def connection(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await talk(secure)
        except (trio.BrokenResourceError, ssl.SSLError):
            await trio.aclose_forcefully(secure)  # the client does not trust it

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    await trio.serve_listeners(connection, listeners)
