"""Requests and answers as every handler sees them, whichever server carries them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from cortex.errors import CortexError

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@attrs.define(eq=False)
class HttpRequest:
    """One request with its whole body.

    ``headers`` have lower-case names (the last of repeated ones wins). ``nursery`` lives exactly as
    long as the response: it is cancelled when the client goes away, and with it everything that was
    started in it. ``caller`` is whom the guard has recognised; None where nobody asked.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: Mapping[str, str]
    nursery: trio.Nursery
    request_id: str
    peer: str | None = None
    params: Mapping[str, str] = attrs.field(factory=dict)
    received_at: float = attrs.field(factory=trio.current_time)  # trio's clock, when headers came
    caller: Any = None


@attrs.frozen(eq=False)
class Answer:
    """A response that is known as a whole."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    content_type: str = JSON


@attrs.frozen(eq=False)
class StreamAnswer:
    """A response whose body comes in chunks, each written as it comes.

    The sender closes the channel at the end; when it closes it early nothing more is written and,
    the terminating chunk excepted, the client sees what was sent.
    """

    chunks: trio.MemoryReceiveChannel[bytes]
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    content_type: str = EVENT_STREAM


Handler = Callable[[HttpRequest], Awaitable[Answer | StreamAnswer]]
ErrorRenderer = Callable[[CortexError, str], Answer]  # the error and the request id


@attrs.frozen
class Route:
    """Requests with *method* on *path*, where ``{name}`` is one segment, ``{name:path}`` any.

    *scope* is what a caller must be allowed ("public", "inference" or "admin"); what it takes to
    be allowed is the guard's.
    """

    method: str
    path: str
    handler: Handler
    render_error: ErrorRenderer | None = None
    scope: str = "inference"


# Raises for a request that may not reach its route's handler; may set the request's ``caller``.
Guard = Callable[[HttpRequest, Route], None]


def request_id_from(headers: Mapping[str, str]) -> str:
    """The client's request id if it is harmless, else a new one."""
    given = headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req_{secrets.token_hex(12)}"
