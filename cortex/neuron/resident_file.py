"""What a process leaves to the one that takes its place: its models, and when it restarted.

The file is replaced as a whole or not at all. One that cannot be read is put aside with a warning,
because a neuron must come up without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from cortex.errors import BadRequest
from cortex.service import logs
from cortex.wire import json
from cortex.wire import neuron as wire
from cortex.wire.converter import structure, unstructure

log = logs.get("neuron.restart")

NAME = "residents.json"


@attrs.frozen
class Legacy:
    """``requests`` are to be loaded again; ``restarts`` are Unix seconds of recent restarts, and
    ``recoveries`` the number of all of them."""

    requests: tuple[wire.LoadRequest, ...] = ()
    restarts: tuple[float, ...] = ()
    recoveries: int = 0


def read(directory: Path) -> Legacy:
    """The legacy in *directory*; an empty one when there is none or it makes no sense."""
    path = directory / NAME
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return Legacy()
    except OSError as exc:
        log.error("resident set not readable", exc=exc, path=path)
        return Legacy()
    try:
        return structure(json.load_object(body), Legacy)
    except BadRequest as exc:
        aside = path.with_suffix(".broken")
        log.error("resident set not understood", exc=exc, path=path, moved_to=aside)
        path.replace(aside)
        return Legacy()


def write(directory: Path, legacy: Legacy) -> None:
    """Store *legacy*, on the disk when this returns. OSError when that cannot be done."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(json.dumps(unstructure(legacy)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def settle(directory: Path, requests: Sequence[wire.LoadRequest] = ()) -> None:
    """The models are back: forget them, but not when the restarts were."""
    legacy = read(directory)
    if legacy.restarts:
        write(directory, attrs.evolve(legacy, requests=tuple(requests)))
    else:
        (directory / NAME).unlink(missing_ok=True)
