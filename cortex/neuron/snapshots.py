"""A repository in the cache of models, laid out as the hub's own tools lay it out.

Blobs are named by their hashes, a snapshot is a folder of links to them for one commit, and a ref
says which commit a branch or tag last meant here. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from cortex.errors import CheckpointError, SourceUnavailable, UnsupportedLoad, clip
from cortex.neuron.hub_files import CONFIG, INDEX, SINGLE, RemoteFile, shard_names
from cortex.neuron.model_place import place_in
from cortex.neuron.partial_file import HOLLOW, draft_of, is_there
from cortex.service import logs

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")

log = logs.get("neuron.hub")


@attrs.frozen
class Place:
    """A repository at one commit, here and on the hub."""

    repository: str
    folder: Path  # of the repository, in the cache
    commit: str

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    @property
    def hollow(self) -> Path:
        """Where the snapshot's small files lie beside weights that have no data."""
        return self.folder / HOLLOW / self.commit

    def blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.etag

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        return [file for file in files if not is_there(self.snapshot / file.name, file)]

    def discard(self, file: RemoteFile) -> None:
        """Take *file* out of the snapshot, and its blob away. Who reads it may go on. What a link
        out of the cache leads to is somebody else's, and stays."""
        name = self.snapshot / file.name
        name.unlink(missing_ok=True)
        self.blob(file).unlink(missing_ok=True)


def cached(
    repository: str, folder: Path, revision: str, quant: str | None, cause: Exception
) -> Path:
    """The snapshot that *revision* last meant here, or the GGUF file in it that *quant* names.

    `SourceUnavailable` unless it is whole.
    """
    what = "is not in the cache"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        commit = revision
        if not COMMIT.fullmatch(revision):
            commit = (folder / "refs" / revision).read_text().strip()
        if COMMIT.fullmatch(commit):
            snapshot = Place(repository, folder, commit).snapshot
            try:
                found = place_in(snapshot, quant)
            except (CheckpointError, UnsupportedLoad) as exc:
                raise SourceUnavailable(
                    f"of {clip(repository)} the cache has something else, and {cause}:"
                    f" {exc.message}"
                ) from exc
            if found != snapshot or _is_whole(snapshot):
                log.info("cached snapshot used", repository=repository, cause=cause)
                return found
            if snapshot.is_dir():
                what = "is in the cache only in part"
    raise SourceUnavailable(f"{clip(repository)} {what}, and {cause}") from cause


def _is_whole(snapshot: Path) -> bool:
    """Whether all is there that the engine reads."""
    if not (snapshot / CONFIG).is_file():
        return False
    if (snapshot / SINGLE).is_file():
        return True
    try:
        names = shard_names((snapshot / INDEX).read_bytes())
    except (FileNotFoundError, CheckpointError):
        return False
    return all((snapshot / name).is_file() for name in names)


def link(place: Place, name: Path, target: Path) -> None:
    """Make *name* a relative link to *target*, in place of what may be there."""
    name.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(place.folder)
    draft.symlink_to(os.path.relpath(target, name.parent))
    draft.replace(name)


def write_ref(place: Place, revision: str) -> None:
    """Note that *revision* means the commit of *place*."""
    ref = place.folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(place.folder)
    draft.write_text(place.commit)
    draft.replace(ref)
