"""A Hugging Face hub on loopback: its listing, its files, and a second host that large ones
redirect to. What goes wrong is plain data that a test may change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import h11
import trio

COMMIT = "c0ffee" + "0" * 34
RECEIVE_BYTES = 64 * 1024
LARGE = (".safetensors", ".gguf")


@attrs.frozen
class Asked:
    """One request as it came; ``host`` is "hub" or "cdn"."""

    host: str
    method: str
    path: str
    headers: dict[str, str]

    @property
    def file(self) -> str | None:
        """The file it asks for."""
        for mark in ("/resolve/", "/cdn/"):
            if mark in self.path:
                return unquote(self.path.split(mark, 1)[1].split("/", 1)[1])
        return None


@attrs.define(eq=False)
class FakeHub:
    """``org/model`` at COMMIT, with *files*."""

    files: dict[str, bytes]
    repository: str = "org/model"
    commit: str = COMMIT
    revisions: set[str] = attrs.field(factory=lambda: {"main"})  # all of them at ``commit``
    asked: list[Asked] = attrs.field(factory=list)
    listing_status: int = 200
    status: dict[str, int] = attrs.field(factory=dict)  # of a file, in place of 200 and 206
    instead: dict[str, bytes] = attrs.field(factory=dict)  # sent in place of what was announced
    announced: list[dict[str, Any]] = attrs.field(factory=list)  # further entries of the listing
    known: list[str] = attrs.field(factory=list)  # what a search finds, whatever is sought
    ranges: bool = True  # False: all is sent whatever part was asked for
    cuts: deque[int] = attrs.field(factory=deque)  # the next bodies end after so many bytes
    stall_after: int | None = None  # bodies of large files stop there until ``release``
    stalled: trio.Event = attrs.field(factory=trio.Event)
    release: trio.Event = attrs.field(factory=trio.Event)
    hub: str = ""
    cdn: str = ""

    def bodies(self, name: str) -> list[Asked]:
        """The requests for *name*'s bytes, as the host that has them saw them."""
        host = "cdn" if name.endswith(LARGE) else "hub"
        return [a for a in self.asked if (a.host, a.method, a.file) == (host, "GET", name)]

    async def _connection(self, host: str, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        with contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            async with stream:
                while (asked := await _receive(http, stream, host)) is not None:
                    self.asked.append(asked)
                    if not await self._answer(http, stream, asked):
                        return
                    http.start_next_cycle()

    async def _answer(self, http: h11.Connection, stream: trio.SocketStream, asked: Asked) -> bool:
        """Answer; False where the connection is to end."""
        known, _, revision = asked.path.partition("/revision/")
        if known == f"/api/models/{self.repository}" and revision:
            if unquote(revision) not in self.revisions:  # said by a header, as the hub does
                gone = {"x-error-code": "RevisionNotFound"}
                return await _send(http, stream, 404, gone, b"")
            return await self._send_listing(http, stream)
        if asked.path == "/api/models":
            found = json.dumps([{"id": name} for name in self.known]).encode()
            return await _send(http, stream, 200, {"content-type": "application/json"}, found)
        if revision:
            return await _send(http, stream, 404, {"x-error-code": "RepoNotFound"}, b"")
        name = asked.file
        if name not in self.files:
            return await _send(http, stream, 404, {}, b"")
        if asked.host == "hub" and name.endswith(LARGE):
            location = f"{self.cdn}/cdn/{self.commit}/{name}"
            return await _send(http, stream, 302, {**self._facts(name), "location": location}, b"")
        return await self._send_file(http, stream, asked, name)

    async def _send_listing(self, http: h11.Connection, stream: trio.SocketStream) -> bool:
        siblings = [self._sibling(name) for name in self.files] + self.announced
        listing = {"id": self.repository, "sha": self.commit, "siblings": siblings}
        headers = {"content-type": "application/json"}
        body = json.dumps(listing).encode()
        return await _send(http, stream, self.listing_status, headers, body)

    async def _send_file(
        self, http: h11.Connection, stream: trio.SocketStream, asked: Asked, name: str
    ) -> bool:
        body = self.instead.get(name, self.files[name])
        status, headers = 200, self._facts(name)
        if name in self.status:
            return await _send(http, stream, self.status[name], {}, b"")
        if self.ranges and "range" in asked.headers:
            first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(body)), len(body) - 1)
            if begin >= len(body):
                return await _send(http, stream, 416, {}, b"")
            status = 206
            headers["content-range"] = f"bytes {begin}-{end}/{len(body)}"
            body = body[begin : end + 1]
        if asked.method == "HEAD":
            headers["content-length"] = str(len(body))
            return await _send(http, stream, status, headers, b"")
        stop = self.stall_after if name.endswith(LARGE) else None
        if stop is not None:
            await _send(http, stream, status, headers, body, stop=stop)
            self.stalled.set()
            await self.release.wait()
            return False
        if self.cuts:
            return await _send(http, stream, status, headers, body, stop=self.cuts.popleft())
        return await _send(http, stream, status, headers, body)

    def _facts(self, name: str) -> dict[str, str]:
        data = self.files[name]
        facts = {"x-repo-commit": self.commit, "etag": f'"{etag(name, data)}"'}
        if name.endswith(LARGE):
            facts |= {"x-linked-etag": facts["etag"], "x-linked-size": str(len(data))}
        return facts

    def _sibling(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        if name.endswith(LARGE):
            entry["lfs"] = {"sha256": etag(name, data), "size": len(data), "pointerSize": 130}
        return entry


@contextlib.asynccontextmanager
async def running(files: dict[str, bytes]) -> AsyncIterator[FakeHub]:
    """A hub with *files*, on ports of its own, until the block ends."""
    hub = FakeHub(dict(files))
    async with trio.open_nursery() as nursery:
        for host in ("hub", "cdn"):
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def serve(stream: trio.SocketStream, host: str = host) -> None:
                await hub._connection(host, stream)

            nursery.start_soon(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            setattr(hub, host, f"http://127.0.0.1:{port}")
        yield hub
        nursery.cancel_scope.cancel()


def etag(name: str, data: bytes) -> str:
    """What names the blob of *name* in the cache."""
    return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_hash(data)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


async def _receive(http: h11.Connection, stream: trio.SocketStream, host: str) -> Asked | None:
    asked = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            headers = {key.decode(): value.decode() for key, value in event.headers}
            path = urlsplit(event.target.decode()).path
            asked = Asked(host, event.method.decode(), path, headers)
        elif isinstance(event, h11.EndOfMessage):
            return asked
        elif isinstance(event, h11.ConnectionClosed):
            return None


async def _send(
    http: h11.Connection,
    stream: trio.SocketStream,
    status: int,
    headers: dict[str, str],
    body: bytes,
    *,
    stop: int | None = None,
) -> bool:
    """Send an answer, or its beginning of *stop* bytes; whether it is complete."""
    fields = [*({"content-length": str(len(body))} | headers).items()]
    data = http.send(h11.Response(status_code=status, headers=fields)) or b""
    if body:
        data += http.send(h11.Data(body[:stop])) or b""
    if stop is None:
        data += http.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    return stop is None


@attrs.define(eq=False)
class ServedHub:
    """A hub in a thread of its own; ``soon`` calls a function there."""

    hub: FakeHub
    soon: Callable[[Callable[[], object]], None]


@contextlib.contextmanager
def served_hub(files: dict[str, bytes]) -> Iterator[ServedHub]:
    """`running`, for a test that is no task."""
    ready = threading.Event()
    started: list[tuple[FakeHub, trio.lowlevel.TrioToken, trio.Event]] = []

    async def main() -> None:
        stop = trio.Event()
        async with running(files) as hub:
            started.append((hub, trio.lowlevel.current_trio_token(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(main,), name="hub")
    thread.start()
    assert ready.wait(10)
    hub, token, stop = started[0]
    try:
        yield ServedHub(hub, token.run_sync_soon)
    finally:
        token.run_sync_soon(stop.set)
        thread.join(10)
        assert not thread.is_alive()
