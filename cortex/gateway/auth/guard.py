"""At the door: who asks, and whether they may reach the route. Runs before a body is read."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import attrs

from cortex.config.values import is_loopback
from cortex.errors import CortexError, Forbidden, Unauthorized
from cortex.gateway.auth import secret
from cortex.gateway.auth.caller import ADMIN, ANONYMOUS, INFERENCE, PUBLIC, Caller
from cortex.gateway.auth.keyring import KeyRing
from cortex.gateway.auth.strangers import Strangers
from cortex.service import logs
from cortex.service.http import HttpRequest, Route
from cortex.service.origin import LOOPBACK_HOSTS, is_foreign_page

FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-real-ip", "via"})
READING = frozenset({"GET", "HEAD"})

log = logs.get("gateway.auth")


@attrs.frozen(eq=False)
class Guard:
    """Lets a request through to its route, with its caller, or raises.

    As long as there has never been a key, whatever clients send as one is not looked at: many
    cannot be told to send none.
    """

    ring: KeyRing
    strangers: Strangers
    listen: str  # the API's address
    refused: Callable[[str], None]  # with the code of each refusal

    def __call__(self, request: HttpRequest, route: Route) -> None:
        """`Unauthorized` without a valid key where one is needed; `Forbidden` with one that lacks
        the route's scope, for strangers at admin routes nobody has a key for, and for web pages
        from elsewhere where strangers are served by default only."""
        if route.scope == PUBLIC:
            request.caller = ANONYMOUS
            return
        began = time.perf_counter()
        try:
            request.caller = self._admit(request, route) or self.strangers.caller
        except CortexError as error:
            self.refused(error.error_code or "error")
            log.info("refused", path=route.path, peer=request.peer, reason=error.message)
            raise
        request.guarded = time.perf_counter() - began

    def _admit(self, request: HttpRequest, route: Route) -> Caller | None:
        """Whom the request comes from; None for a caller without a key, who may come in."""
        caller = self._recognise(request)
        if route.scope == ADMIN:
            self._admit_admin(request, caller)
        elif caller is None:
            self._admit_anonymous(request)
        elif INFERENCE not in caller.scopes and not (
            ADMIN in caller.scopes and request.method in READING
        ):
            raise Forbidden("this API key may not be used for inference")
        return caller

    def _recognise(self, request: HttpRequest) -> Caller | None:
        if not self.ring.has_keys:
            return None
        key = secret.presented(request.headers)
        return None if key is None else self.ring.find(key)

    def _admit_anonymous(self, request: HttpRequest) -> None:
        allowed = self.strangers.welcome
        if allowed is None:
            allowed = not self.ring.has_keys and is_loopback(self.listen)
        if not allowed and self.ring.has_keys:
            raise Unauthorized("this needs an API key, as a bearer or as x-api-key")
        if not allowed:
            raise Unauthorized(
                "this gateway has no API keys yet, and serves nobody without one: its operator "
                "adds one with 'cortex keys add', or sets auth.anonymous"
            )
        # That it listens on loopback says: programs of this machine. Not what its browser reads.
        if self.strangers.welcome is None and is_foreign_page(request.headers):
            raise Forbidden(
                "web pages from elsewhere need an API key, or anonymous = true in [auth] of the "
                "gateway"
            )

    def _admit_admin(self, request: HttpRequest, caller: Caller | None) -> None:
        if caller is not None:
            if ADMIN not in caller.scopes:
                raise Forbidden("this API key may not be used for the fleet's administration")
        elif self.ring.has_admin:
            raise Unauthorized("fleet routes need an API key with the scope admin")
        else:
            _local_only(request)


def _local_only(request: HttpRequest) -> None:
    """Admin routes answer loopback peers, and no page that a browser was led to by a name of its
    own choosing (DNS rebinding): the Host must be a loopback name too. Nor one that sends orders
    from elsewhere (it cannot read the answer, but need not): a browser tells its Origin. And nobody
    behind a proxy on this machine, which says for whom it asks."""
    headers = request.headers
    local = _loopback(request.peer) and _host_of(f"//{headers.get('host', '')}") in LOOPBACK_HOSTS
    if "origin" in headers and _host_of(headers["origin"]) not in LOOPBACK_HOSTS:
        local = False
    if not local or not FORWARDED.isdisjoint(headers):
        raise Forbidden("fleet routes answer requests from this machine only")


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _loopback(peer: str | None) -> bool:
    try:
        return peer is not None and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
