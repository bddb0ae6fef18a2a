"""Which files of a repository make a model. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import attrs

from cortex.errors import CheckpointError, clip

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SMALL = frozenset(
    {
        CONFIG,
        INDEX,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
    }
)
MAX_SMALL_BYTES = 256 << 20


@attrs.frozen
class RemoteFile:
    """A file of a repository at one commit. ``etag`` names its blob in the cache: the SHA-256 of a
    large file, git's SHA-1 of a small one."""

    name: str
    size: int
    etag: str
    sha256: bool


@attrs.frozen
class Choice:
    """What to fetch: the small files first, then the weights."""

    small: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]


def choose(repository: str, files: Sequence[RemoteFile]) -> Choice:
    """The files of a safetensors model. `CheckpointError` when there are none, saying what is
    there instead."""
    by_name = {file.name: file for file in files if _harmless(file.name)}
    small = tuple(by_name[name] for name in sorted(SMALL & by_name.keys()))
    for file in small:
        if file.size > MAX_SMALL_BYTES:
            raise CheckpointError(f"{repository}: {file.name} is absurdly large")
    weights = tuple(
        file
        for name, file in sorted(by_name.items())
        if "/" not in name
        and name.endswith(".safetensors")
        and (INDEX in by_name or name == "model.safetensors" or "model.safetensors" not in by_name)
        and not name.startswith("consolidated")
    )
    if CONFIG not in by_name or not weights:
        have = ", ".join(sorted({posixpath.splitext(n)[1] or n for n in by_name})[:8]) or "nothing"
        raise CheckpointError(
            f"{clip(repository)} is no safetensors model (config.json and *.safetensors); it has:"
            f" {clip(have)}"
        )
    return Choice(small, weights)


def _harmless(name: str) -> bool:
    """Whether *name* stays inside the directory it is put into."""
    parts = name.split("/")
    return bool(name) and not name.startswith("/") and ".." not in parts and "\\" not in name
