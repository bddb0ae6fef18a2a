"""Fetches one blob into the cache, from where the last attempt stopped.

A partial file is named by the blob's etag, so that what it holds is part of exactly those bytes,
whichever process wrote it. The hash is checked over the whole before the blob gets its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import attrs
import httpx
import trio

from cortex.errors import CheckpointError, SourceUnavailable, clip
from cortex.neuron.hub_files import RemoteFile
from cortex.service import logs

SUFFIX = ".cortex-partial"
ATTEMPTS = 5
BACK_OFF_SECONDS = 2.0  # doubled after each attempt that brought nothing
CHUNK = 1 << 20
LOCK_POLL_SECONDS = 1.0
ORPHAN_SECONDS = 7 * 24 * 3600.0

log = logs.get("neuron.download")


class _Interrupted(Exception):
    """The transfer stopped early; what came is kept."""


@attrs.frozen(eq=False)
class Downloader:
    """*client* follows redirects and bounds each read; *advance* gets bytes as they are stored,
    negative ones when they turned out wrong."""

    client: httpx.AsyncClient
    advance: Callable[[int], None]

    async def fetch(self, url: str, file: RemoteFile, blob: Path) -> None:
        """Make *blob* hold *file*. `SourceUnavailable` when it cannot be had now,
        `CheckpointError` when the server does not have what it announced."""
        partial = blob.with_name(blob.name + SUFFIX)
        await trio.to_thread.run_sync(_make_parent, blob)
        handle = await self._lock(partial, blob)
        if handle is None:  # another process has fetched it meanwhile
            self.advance(file.size)
            return
        with handle:
            held = min(os.fstat(handle.fileno()).st_size, file.size)
            self.advance(held)
            await self._complete(url, file, handle, held)
            await trio.to_thread.run_sync(_verify, handle, file)
            await trio.to_thread.run_sync(_publish, handle, partial, blob)

    async def _complete(self, url: str, file: RemoteFile, handle: BinaryIO, held: int) -> None:
        attempt, pause = 0, BACK_OFF_SECONDS
        while held < file.size:
            before = held
            try:
                held = await self._transfer(url, file, handle, held)
            except (httpx.HTTPError, _Interrupted) as exc:
                held = os.fstat(handle.fileno()).st_size
                attempt = 1 if held > before else attempt + 1
                pause = BACK_OFF_SECONDS if held > before else pause * 2
                if attempt >= ATTEMPTS:
                    raise SourceUnavailable(f"{file.name} cannot be fetched: {clip(exc)}") from exc
                log.warning("transfer interrupted", file=file.name, held=held, retry=pause)
                await trio.sleep(pause)

    async def _transfer(self, url: str, file: RemoteFile, handle: BinaryIO, held: int) -> int:
        headers = {"accept-encoding": "identity"}
        if held:
            headers["range"] = f"bytes={held}-"
        async with self.client.stream("GET", url, headers=headers) as response:
            if response.status_code == 416:  # what we hold is not a beginning of it
                handle.truncate(0)
                self.advance(-held)
                raise _Interrupted("the server refused to go on")
            if response.status_code in (401, 403, 404, 410):
                raise CheckpointError(f"{file.name}: the hub answered {response.status_code}")
            if response.status_code not in (200, 206):
                raise _Interrupted(f"the hub answered {response.status_code}")
            if response.status_code == 200 and held:  # it sends all from the start
                handle.truncate(0)
                self.advance(-held)
                held = 0
            handle.seek(held)
            async for data in response.aiter_raw(CHUNK):
                held += len(data)
                if held > file.size:
                    raise CheckpointError(f"{file.name} is longer than announced")
                await trio.to_thread.run_sync(handle.write, data)
                self.advance(len(data))
        if held < file.size:
            raise _Interrupted(f"the transfer ended at {held} of {file.size} bytes")
        return held

    async def _lock(self, partial: Path, blob: Path) -> BinaryIO | None:
        """The partial file, open and ours alone; None when *blob* is there."""
        while True:
            if await trio.to_thread.run_sync(blob.exists):
                return None
            handle = await trio.to_thread.run_sync(_open_locked, partial)
            if handle is not None:
                return handle
            await trio.sleep(LOCK_POLL_SECONDS)


@contextmanager
def _closing_on_error(handle: BinaryIO) -> Iterator[None]:
    try:
        yield
    except BaseException:
        handle.close()
        raise


def _make_parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _open_locked(partial: Path) -> BinaryIO | None:
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    handle = os.fdopen(descriptor, "r+b", buffering=0)
    with _closing_on_error(handle):  # type: ignore[arg-type]
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        # Its owner may have given it its final name between our opening and our locking.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(partial).st_ino == os.fstat(descriptor).st_ino:
                return handle  # type: ignore[return-value]
        handle.close()
        return None


def _verify(handle: BinaryIO, file: RemoteFile) -> None:
    """Compare the whole with the hash that names it; a wrong one is emptied."""
    handle.seek(0)
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        digest.update(b"blob %d\0" % file.size)
    while data := handle.read(CHUNK):
        digest.update(data)
    if digest.hexdigest() != file.etag:
        handle.truncate(0)
        raise SourceUnavailable(f"{file.name} arrived damaged; it is fetched again next time")


def _publish(handle: BinaryIO, partial: Path, blob: Path) -> None:
    os.fsync(handle.fileno())
    partial.replace(blob)


def remove_orphans(blobs: Path, now: float) -> int:
    """Delete partial files that nobody has written to for a week; returns how many."""
    removed = 0
    for partial in blobs.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if now - partial.stat().st_mtime > ORPHAN_SECONDS:
                partial.unlink()
                removed += 1
    return removed
