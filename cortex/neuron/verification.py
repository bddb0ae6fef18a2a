"""Whether files in the cache still have the hashes that name them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import trio

from cortex.neuron.hub_files import RemoteFile
from cortex.neuron.partial_file import has_hash

TELL_BYTES = 16 << 20  # between two reports

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


async def damaged_files(
    snapshot: Path, files: Sequence[RemoteFile], report: Callable[[int, int], None]
) -> list[RemoteFile]:
    """Those of *files*, which are in *snapshot*, whose bytes are not what their hashes say.
    *report* hears bytes done of all."""
    total, done = sum(file.size for file in files), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    if files:
        report(0, total)
    return [
        file
        for file in files
        if not await trio.to_thread.run_sync(_is_intact, snapshot / file.name, file, advance)
    ]


def _is_intact(path: Path, file: RemoteFile, advance: Callable[[int], None]) -> bool:
    waiting = 0

    def checkpoint(count: int) -> None:
        nonlocal waiting
        trio.from_thread.check_cancelled()
        waiting += count
        if waiting >= TELL_BYTES:
            trio.from_thread.run_sync(advance, waiting)
            waiting = 0

    with FileIO(path) as handle:
        intact = has_hash(handle, file, checkpoint)
    trio.from_thread.run_sync(advance, waiting)
    return intact


def blobs_of(snapshot: Path) -> list[RemoteFile]:
    """The files of *snapshot* that are links to blobs, as the blobs' names tell. Blocks."""
    found: list[RemoteFile] = []
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve()
        if path.is_symlink() and blob.is_file() and _HASH.fullmatch(blob.name):
            name, size = path.relative_to(snapshot).as_posix(), blob.stat().st_size
            found.append(RemoteFile(name, size, blob.name, len(blob.name) == 64))
    return found
