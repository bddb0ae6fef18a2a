"""A blob on its way into the cache: locked, appended to, proven, and given its name.

It is named by the blob's etag, so that what it holds is meant to be a beginning of exactly those
bytes, whichever process wrote it. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType

import attrs

from cortex.neuron.hub_files import RemoteFile

SUFFIX = ".cortex-partial"
HASH_BYTES = 1 << 20
ORPHAN_SECONDS = 7 * 24 * 3600.0
HOLLOW = "cortex-headers"  # of a repository's folder: what stands in for weights (hollow_files.py)


@attrs.define(eq=False)
class PartialFile:
    """The open file, locked against every other fetch on this machine. Use as a context manager."""

    blob: Path
    file: RemoteFile
    _handle: FileIO
    held: int  # bytes in it, believed to be the blob's first ones

    @classmethod
    def lock(cls, blob: Path, file: RemoteFile) -> PartialFile | None:
        """Ours alone; None while another fetch has it."""
        blob.parent.mkdir(parents=True, exist_ok=True)
        path = partial_of(blob)
        handle = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        try:
            if not _lock(handle, path):
                handle.close()
                return None
            partial = cls(blob, file, handle, os.fstat(handle.fileno()).st_size)
            if partial.held > file.size:
                partial.empty()
        except BaseException:
            handle.close()
            raise
        return partial

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.close()

    def append(self, data: bytes | bytearray) -> None:
        """Store *data* after what is held. `OSError` when the disk is full; what went is kept."""
        self._handle.seek(self.held)
        with memoryview(data) as rest:
            written = 0
            while written < len(rest):
                count = self._handle.write(rest[written:])
                written += count
                self.held += count

    def empty(self) -> None:
        self._handle.truncate(0)
        self.held = 0

    def matches(self, checkpoint: Callable[[], None]) -> bool:
        """Whether the whole has the hash that names it. *checkpoint* is called now and then, and
        ends this by raising."""
        return has_hash(self._handle, self.file, lambda _: checkpoint())

    def publish(self) -> None:
        """Give it the blob's name, once it is on the disk."""
        os.fsync(self._handle.fileno())
        partial_of(self.blob).replace(self.blob)

    def discard(self) -> None:
        """Remove it: the blob is there without it."""
        with contextlib.suppress(FileNotFoundError):
            partial_of(self.blob).unlink()


def partial_of(blob: Path) -> Path:
    return blob.with_name(blob.name + SUFFIX)


def held(blob: Path, file: RemoteFile) -> int:
    """How much of *file* is here: the bytes of *blob*, or of its partial file."""
    if is_there(blob, file):
        return file.size
    try:
        return min(file.size, partial_of(blob).stat().st_size)
    except FileNotFoundError:
        return 0


def has_hash(handle: FileIO, file: RemoteFile, checkpoint: Callable[[int], None]) -> bool:
    """Whether what *handle* reads has the hash that names *file*. *checkpoint* hears how many bytes
    were read, and ends this by raising."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        digest.update(b"blob %d\0" % file.size)  # as git names it
    handle.seek(0)
    while data := handle.read(HASH_BYTES):
        checkpoint(len(data))
        digest.update(data)
    return digest.hexdigest() == file.etag


def is_there(path: Path, file: RemoteFile) -> bool:
    """Whether *path* is *file*, by its length."""
    try:
        return path.is_file() and path.stat().st_size == file.size
    except FileNotFoundError:
        return False


def draft_of(folder: Path) -> Path:
    """A name of its own in the blobs of *folder*, for what is renamed to its place when whole."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    return blobs / f"{secrets.token_hex(8)}{SUFFIX}"


def remove_orphans(folder: Path, keep: str, now: float) -> int:
    """Delete from a repository's *folder* what nobody has touched for a week: partial files, and
    headers of commits other than *keep*. How many went. *now* as `time.time` has it."""
    removed = 0
    for path in (folder / "blobs").glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if now - path.lstat().st_mtime > ORPHAN_SECONDS and _unlink_unlocked(path):
                removed += 1
    for place in (folder / HOLLOW).glob("*"):
        with contextlib.suppress(OSError):
            if place.name != keep and now - place.stat().st_mtime > ORPHAN_SECONDS:
                shutil.rmtree(place)
                removed += 1
    return removed


def _lock(handle: FileIO, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Its owner may have given it its final name between our opening and our locking.
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _unlink_unlocked(path: Path) -> bool:
    if path.is_symlink():  # the draft of a link
        path.unlink()
        return True
    with FileIO(path, "r+") as handle:
        if not _lock(handle, path):
            return False
        path.unlink()
    return True
