"""Pins set at run time: models that are not to be evicted or unloaded when idle.

What models.toml pins (``pinned_on``) is the catalogue's; these come on top of it, by an operator's
order, and survive a restart in the state directory. A file that cannot be understood ends the start
rather than being dropped: a pin that is lost in silence is an evicted model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import attrs

from cortex.config.errors import ConfigError
from cortex.errors import BadRequest, Conflict, InternalError, NotFound, clip
from cortex.service import logs
from cortex.wire import json
from cortex.wire.converter import structure, unstructure

NAME = "pins.json"

log = logs.get("gateway.pins")


@attrs.frozen(order=True)
class Pin:
    """*model* stays on *node*, or wherever it is when there is none."""

    model: str
    node: str | None = attrs.field(default=None, order=lambda node: node or "")


@attrs.frozen
class _File:
    pins: tuple[Pin, ...]


class Pins:
    """The one owner of the pins. Without a *directory* they last as long as the process."""

    def __init__(self, directory: Path | None = None) -> None:
        """`ConfigError` when there is a file in *directory* that cannot be read or understood."""
        self._path = directory / NAME if directory is not None else None
        self._pins = frozenset(_read(self._path)) if self._path is not None else frozenset()

    def holds(self, node: str, model: str) -> bool:
        """Whether *model* is to stay on *node*."""
        return Pin(model) in self._pins or Pin(model, node) in self._pins

    def all(self) -> tuple[Pin, ...]:
        return tuple(sorted(self._pins))

    def pin(self, model: str, node: str | None = None) -> None:
        """Keep *model* on *node*, or everywhere. `InternalError` when it cannot be stored."""
        self._store(self._pins | {Pin(model, node)})

    def unpin(self, model: str, node: str | None = None) -> tuple[Pin, ...]:
        """Take back the pin of *model* on *node*, or all there are of it; those taken back.

        `NotFound` when there is none, `Conflict` for one node of a model that is pinned everywhere.
        """
        wanted = [each for each in self._pins if each.model == model and node in (None, each.node)]
        if not wanted and Pin(model) in self._pins:
            raise Conflict(f"{clip(model)} is pinned on every node: unpin it without naming one")
        if not wanted:
            where = f" on {clip(node)}" if node is not None else ""
            raise NotFound(f"{clip(model)} is not pinned{where}")
        self._store(self._pins - frozenset(wanted))
        return tuple(sorted(wanted))

    def _store(self, pins: frozenset[Pin]) -> None:
        if self._path is not None:
            try:
                _write(self._path, sorted(pins))
            except OSError as exc:
                log.error("pins cannot be stored", exc=exc, path=self._path)
                raise InternalError(f"the pin cannot be stored: {exc.strerror or exc}") from exc
        self._pins = pins


def _read(path: Path) -> tuple[Pin, ...]:
    try:
        return structure(json.load_object(path.read_bytes()), _File).pins
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or exc}") from None
    except BadRequest as exc:
        raise ConfigError(f"{path}: is no list of pins ({exc}); repair or remove it") from None


def _write(path: Path, pins: Iterable[Pin]) -> None:
    """Replace *path* as a whole, on the disk when this returns. OSError when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(json.dumps(unstructure(_File(tuple(pins)))))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
