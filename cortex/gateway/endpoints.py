"""Where a model is reached: what its neuron advertises, made reachable from here."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit


def reachable(advertised: str, configured: str) -> str:
    """The base URL to use for a model whose neuron, known as *configured*, says *advertised*.

    A neuron that listens on loopback or on every address cannot know the name by which others
    reach it: its host is replaced by the configured one, its port kept. What is no HTTP address
    at all yields the configured endpoint.
    """
    configured = configured.rstrip("/")
    try:
        theirs, ours = urlsplit(advertised), urlsplit(configured)
        port = theirs.port
    except ValueError:
        return configured
    if theirs.scheme not in ("http", "https") or not theirs.hostname or theirs.username:
        return configured
    path = theirs.path.rstrip("/")
    if not _only_local(theirs.hostname) or _is_loopback(ours.hostname or ""):
        host = ours.hostname if _is_unspecified(theirs.hostname) else theirs.hostname
        return _join(theirs, host or "", port, path)
    return _join(theirs, ours.hostname or "", port, path)


def _join(parts: SplitResult, host: str, port: int | None, path: str) -> str:
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    return f"{parts.scheme}://{netloc}{path}"


def _only_local(host: str) -> bool:
    return _is_loopback(host) or _is_unspecified(host)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
