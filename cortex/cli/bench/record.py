"""A run as a file: what was measured, how, and when; read back to be compared with."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from cortex import __version__
from cortex.cli.bench.comparison import Measured
from cortex.cli.bench.plan import CellResult
from cortex.cli.bench.statistics import spreads
from cortex.cli.exits import Misconfigured
from cortex.wire import json

FORMAT = 1
Json = dict[str, Any]


def record(options: Json, results: Sequence[CellResult]) -> Json:
    """*options* are what a comparison must know was the same: model, dialect, ..."""
    return {
        "cortex_bench": FORMAT,
        "cortex": __version__,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "client": {"host": platform.node(), "cores": os.cpu_count()},
        "options": options,
        "cells": [_cell(result) for result in results],
    }


def _cell(result: CellResult) -> Json:
    return {
        "name": result.cell.name,
        **attrs.asdict(result.cell),
        "client_cpu": round(result.cpu, 3),
        "errors": result.errors,
        "figures": {
            name: {part: round(value, 4) for part, value in attrs.asdict(spread).items()}
            for name, spread in result.spreads.items()
        },
        "repeats": [
            {name: round(value, 4) for name, value in each.items()} for each in result.repeats
        ],
    }


def check_place(path: Path) -> None:
    """`Misconfigured` where `save` could not write: said before the run, not after it."""
    if not path.parent.is_dir():
        raise Misconfigured(f"--save: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Misconfigured(f"--save: {path} cannot be written")


def save(path: Path, told: Json) -> None:
    """`Misconfigured` where *path* cannot be written."""
    try:
        path.write_bytes(json.dumps(told) + b"\n")
    except OSError as exc:
        raise Misconfigured(f"--save: {path}: {exc.strerror}") from None


def read(path: Path) -> Json:
    """A run that `save` wrote. `Misconfigured` for anything else."""
    try:
        told = json.load_object(path.read_bytes())
    except OSError as exc:
        raise Misconfigured(f"--compare: {path}: {exc.strerror}") from None
    except Exception:
        raise Misconfigured(f"--compare: {path} is no saved run") from None
    if told.get("cortex_bench") != FORMAT:
        raise Misconfigured(f"--compare: {path} is no saved run of this version")
    try:
        measured(told)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise Misconfigured(f"--compare: {path} is no saved run") from None
    return told


def measured(told: Json) -> dict[str, Measured]:
    """The cells of a run by name."""
    found: dict[str, Measured] = {}
    for cell in told["cells"]:
        repeats = [{name: float(v) for name, v in each.items()} for each in cell["repeats"]]
        found[str(cell["name"])] = Measured(len(repeats), spreads(repeats))
    return found


def differences(before: Json, now: Json) -> list[str]:
    """What was not the same in two runs, so that their figures may differ for that."""
    one, other = before.get("options") or {}, now["options"]
    told = [
        f"{name} was {one.get(name)!r} and is {other.get(name)!r}"
        for name in other
        if name != "endpoint" and one.get(name) != other[name]
    ]
    if before.get("client") != now["client"]:
        told.append("the client is another machine")
    return told
