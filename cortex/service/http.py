"""Requests and answers as every handler sees them, whichever server carries them."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import attrs
import trio

from cortex.errors import CortexError

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

# Headers whose repetition means that somebody in front may have believed the other one.
ONCE = frozenset({"authorization", "content-encoding", "expect", "host", "x-api-key"})

# Ids have to differ, not to be hard to guess: the system's generator costs a call of the kernel.
_ids = random.Random(secrets.randbits(256))
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@attrs.define(eq=False)
class HttpRequest:
    """One request with its whole body, decoded.

    ``headers`` have lower-case names (the last of repeated ones wins). The task that serves a
    request, and with it everything under it, is cancelled when the client goes away. ``caller`` is
    whom the guard has recognised; None where nobody asked. ``recorded`` is set by whoever writes
    the one line of the log in which it ends.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: Mapping[str, str]
    request_id: str
    peer: str | None = None
    params: Mapping[str, str] = attrs.field(factory=dict)
    received_at: float = attrs.field(factory=trio.current_time)  # trio's clock, when headers came
    caller: Any = None
    guarded: float = 0.0  # seconds that its guard took
    recorded: bool = False


@attrs.frozen(eq=False)
class Answer:
    """A response that is known as a whole."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    content_type: str = JSON


@attrs.frozen
class Pace:
    """Seconds: until the status is sent although nothing came yet, between keep-alives, and how
    long a client may take no data."""

    commit_after: float = 5.0
    keep_alive: float = 2.0
    stall: float = 300.0


class Writer(Protocol):
    """What a streamed answer is written with."""

    @property
    def committed(self) -> bool:
        """Whether the status has been sent: from then on failures have to be said in band."""
        ...

    async def commit(self) -> None:
        """Send the status and the answer's opening, unless that has been done."""
        ...

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Write whole frames, behind the status; *last* ends the response in the same breath.

        `ClientStalled` after the stall bound, BrokenResourceError when the client has gone.
        Returns without a checkpoint where the client takes the data at once.
        """
        ...


ErrorRenderer = Callable[[CortexError, str], Answer]  # the error and the request id


@attrs.frozen(eq=False)
class StreamAnswer:
    """A response that is written while it comes into being.

    The server calls ``produce``, once, in the task that serves the request. What it raises before
    the status is committed is answered as a status, by ``render_error`` or else by the route's
    renderer; what it raises after that cuts the response short. The status is also committed, with
    what ``opening`` returns, when ``pace`` says so, and in silences ``filler`` gives a keep-alive,
    or nothing where none may stand.
    """

    produce: Callable[[Writer], Awaitable[None]]
    pace: Pace = attrs.field(factory=Pace)
    opening: Callable[[], bytes] = bytes
    filler: Callable[[], bytes] = bytes
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    content_type: str = EVENT_STREAM
    render_error: ErrorRenderer | None = None


Handler = Callable[[HttpRequest], Awaitable[Answer | StreamAnswer]]


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


# Hears the end of a request that nobody else records: its status and how it ended.
Ended = Callable[[HttpRequest, int, str], None]

# Raises for a request that may not reach its route's handler; may set the request's ``caller``.
Guard = Callable[[HttpRequest, Route], None]


def request_id_from(headers: Mapping[str, str]) -> str:
    """The client's request id if it is harmless, else a new one."""
    given = headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req_{_ids.getrandbits(96):024x}"
