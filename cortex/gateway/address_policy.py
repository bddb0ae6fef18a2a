"""Where an image may be fetched from: the open internet, and nothing behind the gateway. Pure.

A client that names a URL would otherwise have the gateway ask whatever the gateway can reach: its
own ports, the neurons, a cloud's metadata service (server-side request forgery).
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import attrs

MAX_URL = 2048  # characters
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*")
# A last label that is a number makes the whole an address of IPv4, in forms that resolvers read
# each their own way (0x7f.1, 2130706433): only the plain one is taken.
_NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")

# Addresses that are global by their form but lead to an IPv4 address inside them.
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))
_TRANSLATED += (ipaddress.IPv6Network("2001::/32"),)


class NotAllowed(ValueError):
    """An address that nothing is fetched from; the text is for the client."""


@attrs.frozen
class Target:
    """What to ask of whom. ``path`` has the query; ``host`` is a name or an address."""

    scheme: str
    host: str
    port: int
    path: str


def target_of(url: str, *, allow_http: bool = False) -> Target:
    """What *url* means, or `NotAllowed`. No name is resolved."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise NotAllowed("the URL is too long or holds characters that have to be encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NotAllowed("the URL cannot be read") from None
    scheme = parts.scheme.lower()
    if scheme not in (("https", "http") if allow_http else ("https",)):
        raise NotAllowed(f"only {'http and https' if allow_http else 'https'} URLs are fetched")
    if "@" in parts.netloc or "\\" in url:
        raise NotAllowed("a URL with credentials is not fetched")
    if port not in (None, _PORTS[scheme]):
        raise NotAllowed(f"only port {_PORTS[scheme]} is asked")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme, _host(host), _PORTS[scheme], path)


def _host(host: str | None) -> str:
    host = (host or "").removesuffix(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host) or _NUMERIC.fullmatch(host) or len(host) > 253:
            raise NotAllowed("the URL names no host") from None
        return host
    if not is_public(host):
        raise NotAllowed("the URL leads to an address that is not on the open internet")
    return str(address)


def is_public(address: str) -> bool:
    """Whether *address* is one host on the open internet."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return False
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not ip.is_unspecified
        and not ip.is_loopback
        and not ip.is_link_local
    )
