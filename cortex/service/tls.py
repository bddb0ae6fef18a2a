"""TLS in front of HTTP: the certificate a port shows, handshakes, the link over what comes of one.

HTTP/1.1 is all that is offered (ALPN), from TLS 1.2 on; ciphers are those of Python's defaults.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import attrs
import trio

from cortex.service import expiry, logs
from cortex.service.link import SocketLink, StreamLink

HANDSHAKE_SECONDS = 10.0

log = logs.get("service.tls")


class BadCertificate(Exception):
    """Files that make no certificate; ``of_key`` tells which of the two it is about."""

    def __init__(self, message: str, *, of_key: bool = False) -> None:
        super().__init__(message)
        self.of_key = of_key


class ServerContext(ssl.SSLContext):
    """A server's; ``expires_at`` is when its certificate ceases to be valid, in Unix time."""

    expires_at: float


def server_context(certificate: Path, key: Path) -> ServerContext:
    """What a server needs to show the PEM chain in *certificate*, whose private key is in *key*.

    Both may be one file. `BadCertificate` when they cannot be read or do not belong together.
    """
    for path, of_key in ((certificate, False), (key, True)):
        try:
            path.read_bytes()
        except OSError as exc:
            raise BadCertificate(f"{path}: {exc.strerror or exc}", of_key=of_key) from None
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def passphrase() -> str:
        # in place of OpenSSL's question on the terminal
        raise BadCertificate(f"{key}: has a passphrase, which nobody is there to give", of_key=True)

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except OSError as exc:  # of which SSLError is one
        raise _what_is_wrong(certificate, key, exc) from None
    try:
        context.expires_at = expiry.not_after(certificate.read_text("latin-1")).timestamp()
    except (OSError, ValueError) as exc:  # OpenSSL has read it, so that it has changed since
        raise BadCertificate(f"{certificate}: holds no certificate in PEM ({exc})") from None
    return context


def _what_is_wrong(certificate: Path, key: Path, exc: OSError) -> BadCertificate:
    reason = getattr(exc, "reason", None)
    detail = f" ({reason})" if reason else ""
    if reason == "KEY_VALUES_MISMATCH":
        return BadCertificate(
            f"{key}: is not the key of the certificate in {certificate}", of_key=True
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except OSError:
        return BadCertificate(f"{certificate}: holds no certificate in PEM{detail}")
    return BadCertificate(f"{key}: holds no private key in PEM that fits{detail}", of_key=True)


@attrs.define(eq=False)
class Tls:
    """The ``context`` of a port; handshakes that begin after it was replaced use the new one."""

    context: ServerContext


@attrs.define(eq=False)
class TlsLink(StreamLink):
    """Over a TLS stream on *raw*, which is closed, and looked at for a hang-up, beneath it."""

    raw: SocketLink = attrs.field(kw_only=True)

    async def linger(self) -> None:
        # TLS has no half-closed connections, but what carries it has.
        await self.raw.linger()

    def close(self) -> None:
        self.raw.close()


@attrs.define(eq=False)
class Handshakes:
    """Turns sockets into links over TLS. *nursery* has to outlive these."""

    tls: Tls
    nursery: trio.Nursery
    _under_way: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    _draining: bool = attrs.field(default=False, init=False)

    async def secured(self, raw: SocketLink) -> TlsLink | None:
        """*raw* with TLS on it; None when the peer does not manage a handshake in
        `HANDSHAKE_SECONDS`, or before `drain`."""
        stream = trio.SSLStream(
            raw.stream(), self.tls.context, server_side=True, https_compatible=True
        )
        cause = "it took too long"
        scope = trio.move_on_after(HANDSHAKE_SECONDS)
        self._under_way.add(scope)
        try:
            with scope:
                if self._draining:
                    scope.cancel("draining")
                await stream.do_handshake()
                return TlsLink(stream, self.nursery, raw.peer, raw.sock, raw=raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            cause = str(exc.__cause__ or exc) or "the client has gone"
        finally:
            self._under_way.discard(scope)
        if self._draining:
            cause = "the server ends"
        log.debug("no TLS handshake", peer=raw.peer, cause=cause)
        return None

    def drain(self) -> None:
        """End the handshakes under way: no request has come over them."""
        self._draining = True
        for scope in self._under_way:
            scope.cancel("draining")
