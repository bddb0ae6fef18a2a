"""Asking gateways, neurons and the hub over HTTP, within bounds, without ever raising."""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx

SECONDS = 5.0  # for an answer that costs the other side nothing
TOKEN_SECONDS = 60.0  # for one token of a model that may be busy
MAX_BYTES = 8 << 20


@attrs.frozen
class Heard:
    """What a request came to. *status* None: nobody answered, *error* says why. *skew* is how far
    the other side's clock is ahead, in seconds, known to about *doubt*; None where it told none."""

    status: int | None = None
    body: Any = None
    error: str = ""
    skew: float | None = None
    doubt: float = 0.0

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """Why it is not good, in words."""
        if self.status is None:
            return self.error
        told = self.body.get("error") if isinstance(self.body, dict) else None
        message = told.get("message") if isinstance(told, dict) else None
        return f"{self.status} {message}" if message else f"status {self.status}"


def ask(
    url: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: dict[str, Any] | None = None,
    seconds: float = SECONDS,
    proxied: bool = False,
    verify: ssl.SSLContext | bool = True,
) -> Heard:
    """GET *url*, or POST *body* to it. *proxied*: the environment's proxies are heeded. *verify*
    True trusts whom the command line trusts; only https asks for any of it."""
    sent = dict(headers or {})
    if token:
        sent["authorization"] = f"Bearer {token}"
    began, before = time.time(), time.monotonic()
    try:
        with httpx.Client(
            timeout=httpx.Timeout(seconds, connect=SECONDS),
            trust_env=proxied,
            verify=_verification(url, verify),
        ) as client:
            method = "GET" if body is None else "POST"
            with client.stream(method, url, headers=sent, json=body) as response:
                data = b""
                for part in response.iter_bytes():
                    data += part
                    late = time.monotonic() - before > seconds + SECONDS
                    if late or len(data) > MAX_BYTES:
                        return Heard(error="the answer has no end")
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as exc:
        return Heard(error=_why(exc))
    took = time.monotonic() - before
    skew = _skew(response.headers.get("date"), began + took / 2)
    return Heard(response.status_code, _json(data), skew=skew, doubt=1.0 + took / 2)


def _verification(url: str, verify: ssl.SSLContext | bool) -> ssl.SSLContext | bool:
    if verify is not True or not url.startswith("https:"):
        return False if verify is True else verify  # there is nothing to verify
    return httpx.create_ssl_context()


def _why(exc: BaseException) -> str:
    link: BaseException | None = exc
    while link is not None and not str(link):
        link = link.__cause__ or link.__context__
    return (str(link).rpartition("] ")[2] if link else "") or type(exc).__name__


def _json(data: bytes) -> Any:
    import json

    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")


def _skew(date: str | None, local: float) -> float | None:
    """A Date header has whole seconds: half of one is added."""
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp() + 0.5 - local
    except (ValueError, OverflowError):
        return None


def base_of(listen: str, *, secure: bool = False) -> str:
    """The base URL by which this machine reaches what listens at *listen*."""
    from cortex.config.values import join_listen, split_listen

    host, port = split_listen(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http{'s' if secure else ''}://{join_listen(host, port or 0)}"


def is_url(text: str) -> bool:
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname)
