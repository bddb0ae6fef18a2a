"""The command line's side of a gateway: synchronous, with errors that end the command."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import click
import httpx

from cortex.cli.exits import Failed, Misconfigured, Unreachable

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ENDPOINT = "http://127.0.0.1:31313"
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
# A gateway writes at least every few seconds once it has begun, and commits a stream after some
# seconds of queueing, so this much silence is a dead one.
STREAM_SILENCE_SECONDS = 120.0

endpoint_option: Callable[[F], F] = click.option(
    "--endpoint",
    "--url",
    "-e",
    "endpoint",
    default=DEFAULT_ENDPOINT,
    envvar="CORTEX_ENDPOINT",
    metavar="URL",
    show_default=True,
    help="The gateway.  [env: CORTEX_ENDPOINT]",
)
# Not from the environment by click, so that --help does not show it: `open_client` reads it.
key_option: Callable[[F], F] = click.option(
    "--key", metavar="KEY", help="Key of the API, where it wants one.  [env: CORTEX_API_KEY]"
)


def gateway_options(command: F) -> F:
    """``--endpoint`` and ``--key``, for every command that asks a gateway."""
    return endpoint_option(key_option(command))


class Refused(Failed):
    """The gateway answered with an error. ``error`` is the error object."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or f"the gateway answered {status}"))
        self.status = status
        self.error = error


@attrs.define(eq=False)
class GatewayClient:
    """Requests to one gateway. `Unreachable` when nobody answers, `Refused` on an error."""

    endpoint: str
    _client: httpx.Client

    def get(self, path: str) -> dict[str, Any]:
        with self._reaching():
            return self._body(self._client.get(path))

    def post(self, path: str, body: dict[str, Any], *, patient: bool = False) -> dict[str, Any]:
        """*patient* waits for the answer as long as the gateway takes: a load may take hours."""
        read = None if patient else READ_SECONDS
        with self._reaching():
            return self._body(self._client.post(path, json=body, timeout=_timeout(read)))

    @contextmanager
    def stream(self, path: str, body: dict[str, Any] | None = None) -> Iterator[Iterator[bytes]]:
        """The bytes of a streaming answer as they come; of a GET without a *body*."""
        timeout = _timeout(STREAM_SILENCE_SECONDS)
        method = "GET" if body is None else "POST"
        with (
            self._reaching(),
            self._client.stream(method, path, json=body, timeout=timeout) as response,
        ):
            if response.status_code != 200:
                response.read()
                self._body(response)
            yield response.iter_bytes()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.ReadTimeout:
            raise Unreachable(f"{self.endpoint} has been silent for too long") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            reason = str(exc).rpartition("] ")[2] or "no answer"  # without "[Errno 111] "
            raise Unreachable(f"cannot reach {self.endpoint}: {reason}") from None
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise Unreachable(f"lost the connection to {self.endpoint}: {reason}") from None

    def _body(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and isinstance(body, dict):
            return body
        error = body.get("error") if isinstance(body, dict) else None
        if response.is_success:
            raise Failed(f"{self.endpoint} is no cortex gateway: it did not answer with JSON")
        raise Refused(response.status_code, error if isinstance(error, dict) else {})


@contextmanager
def open_client(endpoint: str, key: str | None = None) -> Iterator[GatewayClient]:
    """A client of the gateway at *endpoint*; without *key* ``CORTEX_API_KEY`` is the key."""
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise Misconfigured(f"--endpoint: expected an http or https URL, got {endpoint!r}")
    key = key or os.environ.get("CORTEX_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # A proxy for the way out has no business on the way to one's own machine.
    local = url.hostname in ("localhost", "::1") or url.hostname.startswith("127.")
    with httpx.Client(
        base_url=endpoint.rstrip("/"),
        headers=headers,
        timeout=_timeout(READ_SECONDS),
        trust_env=not local,
        verify=_verification() if url.scheme == "https" else True,
    ) as client:
        yield GatewayClient(endpoint.rstrip("/"), client)


def _verification() -> ssl.SSLContext:
    """Trust in ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, else in certifi's authorities. httpx itself
    heeds the two only where it heeds a proxy."""
    try:
        return httpx.create_ssl_context()
    except OSError as exc:
        raise Misconfigured(f"SSL_CERT_FILE, SSL_CERT_DIR: {exc.strerror or exc}") from None


def _timeout(read: float | None) -> httpx.Timeout:
    return httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, read=read)
