"""A certificate for 127.0.0.1 that only those trust who are told to, and a port that shows it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

Talk = Callable[[trio.abc.Stream], Awaitable[None]]


def certificate(folder: Path) -> Path:
    """A new certificate with its key, as one PEM file. Skips the test without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    key, made = folder / "key.pem", folder / "made.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", made),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "certificate.pem"
    both.write_bytes(made.read_bytes() + key.read_bytes())
    return both


async def serve_tls(
    pem: Path, talk: Talk, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Give each connection to *talk*, through TLS; starts with its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)

    async def connection(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await talk(secure)
        except (trio.BrokenResourceError, ssl.SSLError):
            await trio.aclose_forcefully(secure)  # the client does not trust it

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    await trio.serve_listeners(connection, listeners)
