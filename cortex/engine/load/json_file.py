"""A JSON object out of a file that nobody has checked. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cortex.errors import CheckpointError, clip

MAX_CONFIG_BYTES = 16 << 20  # a config has kilobytes, an index of 100 shards a few megabytes


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """*data* as a JSON object; CheckpointError names *where*. A name that occurs twice is bad."""
    value = _parse(data, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: not a JSON object")
    return value


def _parse(data: bytes, where: str) -> Any:

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise CheckpointError(f"{where}: a name occurs twice in an object")
        return members

    try:
        return json.loads(data, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON: {clip(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at *path*, at most MAX_CONFIG_BYTES long."""
    return parse_object(_read(path), path.name)


def read_array(path: Path) -> list[Any]:
    """The JSON array in the file at *path*, at most MAX_CONFIG_BYTES long."""
    value = _parse(_read(path), path.name)
    if not isinstance(value, list):
        raise CheckpointError(f"{path.name}: not a JSON array")
    return value


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {clip(error.strerror)}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path.name} is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    return data
