"""Which files of a repository make a model, as the engine reads them. Pure."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from cortex.engine.load.scheme import METHODS
from cortex.engine.quant.recipes import find_recipe
from cortex.errors import CheckpointError, clip
from cortex.neuron.gguf_choice import SUFFIX, choose, is_dense, variants

Files = Literal["all", "metadata"]

CONFIG = "config.json"
SINGLE = "model.safetensors"  # the engine prefers it to shards
INDEX = "model.safetensors.index.json"
SMALL = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        # How sentence-transformers pools, of an embedding model.
        "modules.json",
        "1_Pooling/config.json",
    }
)
MAX_SMALL_BYTES = 256 << 20
MAX_SHARDS = 10_000
MAX_FILE_BYTES = 1 << 50  # a PiB; sums of such sizes are still numbers of JSON

_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.safetensors")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class RemoteFile:
    """A file of a repository at one commit. ``etag`` names its blob in the cache: the SHA-256 of a
    large file, git's SHA-1 of a small one."""

    name: str
    size: int
    etag: str
    sha256: bool

    @property
    def is_sound(self) -> bool:
        """Whether the etag is a hash and the size a size."""
        pattern = _SHA256 if self.sha256 else _SHA1
        sized = type(self.size) is int and 0 <= self.size <= MAX_FILE_BYTES
        return sized and pattern.fullmatch(self.etag) is not None


@attrs.frozen
class Pulled:
    """What is here after a pull. ``fetched`` are the bytes of files that were not here, or not
    whole, before; ``repaired`` names those whose bytes had changed."""

    path: Path
    commit: str | None  # None: of no repository
    size: int
    fetched: int = 0
    repaired: tuple[str, ...] = ()
    online: bool = True  # False: as the cache has it, since the hub was out of reach


@attrs.frozen
class Chosen:
    """``small`` are the files beside the weights, with the weights' index where there are shards.

    ``gguf`` are the parts of a GGUF model; empty where the weights are safetensors.
    """

    small: tuple[RemoteFile, ...]
    gguf: tuple[RemoteFile, ...] = ()


def choose_files(repository: str, files: Sequence[RemoteFile], quant: str | None) -> Chosen:
    """What to fetch of *repository*: the GGUF file that *quant* names, or safetensors.

    `CheckpointError` when it holds no model, saying what is there instead; `UnsupportedLoad` for a
    *quant* that none of its GGUF files has, or that safetensors can neither have nor be given.
    """
    by_name = {file.name: file for file in files}
    dense = CONFIG in by_name and (SINGLE in by_name or INDEX in by_name)
    found = variants(by_name)
    if is_dense(found, quant, dense=dense):
        if not dense:
            raise _no_model(repository, by_name)
        if quant is not None and quant.casefold() not in METHODS:
            find_recipe(quant)  # known before gigabytes are fetched
        wanted = SMALL if SINGLE in by_name else SMALL | {INDEX}
        return Chosen(_small(repository, by_name, wanted))
    chosen = choose(found, quant, repository)
    gguf = tuple(by_name[name] for name in chosen.files)
    return Chosen(_small(repository, by_name, SMALL), gguf)


def _small(
    repository: str, by_name: Mapping[str, RemoteFile], wanted: frozenset[str]
) -> tuple[RemoteFile, ...]:
    small = tuple(by_name[name] for name in sorted(wanted & by_name.keys()))
    for file in small:
        if file.size > MAX_SMALL_BYTES:
            raise CheckpointError(f"{clip(repository)}: {file.name} is absurdly large")
    return small


def _no_model(repository: str, names: Iterable[str]) -> CheckpointError:
    have = ", ".join(sorted({posixpath.splitext(n)[1] or n for n in names})[:8]) or "nothing"
    return CheckpointError(
        f"{clip(repository)} holds no model: neither safetensors ({CONFIG} and {SINGLE} or its"
        f" index) nor all parts of a {SUFFIX} file; it has: {clip(have)}"
    )


def choose_weights(
    repository: str, files: Iterable[RemoteFile], index: bytes | None
) -> tuple[RemoteFile, ...]:
    """The files with the tensors; *index* is INDEX's text, None where SINGLE is there."""
    by_name = {file.name: file for file in files}
    names = [SINGLE] if index is None else shard_names(index)
    for name in names:
        if name not in by_name:
            raise CheckpointError(f"{clip(repository)} lacks {clip(name)}, which its index names")
    return tuple(by_name[name] for name in names)


def shard_names(index: bytes) -> Sequence[str]:
    """The files that an index names, in order. `CheckpointError` unless they are plain names."""
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{INDEX} is not an index") from exc
    if not 0 < len(names) <= MAX_SHARDS:
        raise CheckpointError(f"{INDEX} names {len(names)} shards")
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise CheckpointError(f"{INDEX}: '{clip(name)}' is not a shard's file name")
    return names
