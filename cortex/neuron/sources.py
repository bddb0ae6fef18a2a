"""Where models' files come from: the package's demonstration model, a local directory, or a hub.

``source`` is ``[scheme:]place`` and defaults to the model's id. A place that begins with ``/``,
``./``, ``../`` or ``~/`` is a directory or a GGUF file of this machine; ``demo`` is the
demonstration model; anything else is ``org/name`` on the hub, or ``org/name@revision``
for another branch, tag or commit than ``main``. Where a place has several GGUF files,
``quant`` says which.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import attrs
import trio

from cortex.config.neuron import NeuronConfig, is_local_path
from cortex.errors import BadRequest, CheckpointError, clip
from cortex.neuron.hub_files import Files, Pulled
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.model_place import place_in, place_of_file

DEMO = "demo"
DEMO_ID = "cortex/demo"
DEMO_DIRECTORY = Path(__file__).parent / "demo"
HUB_SCHEMES = frozenset({"huggingface", "hf"})

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Hub(Protocol):
    """Repositories of models, through a cache on this machine."""

    async def fetch(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        files: Files,
        quant: str | None = None,
        revision: str | None = None,
    ) -> Path:
        """The directory with *repository*'s files, or its GGUF file that *quant* names; fetched
        where the cache lacks them."""
        ...

    async def pull(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        revision: str | None = None,
        verify: bool = False,
    ) -> Pulled:
        """Fetch *repository*'s files for their own sake; with *verify* hash those that are here."""
        ...


@attrs.frozen(eq=False)
class Sources:
    """Resolves a load's source to a directory of safetensors, or to a GGUF file."""

    hub: Hub

    @classmethod
    def from_config(cls, config: NeuronConfig) -> Sources:
        from cortex.neuron.hub import HuggingFaceHub

        return cls(HuggingFaceHub.from_config(config))

    async def resolve(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: ReportProgress,
        files: Files,
        quant: str | None = None,
    ) -> Path:
        """The directory with the model's files, or the GGUF file that has them all; ``metadata``
        leaves the weights out.

        `BadRequest` for a source that means nothing, `CheckpointError` when there is no such
        model, `UnsupportedLoad` when there is none of that *quant*, `SourceUnavailable` when it
        cannot be reached now.
        """
        place = source or model_id
        if place in (DEMO, DEMO_ID):
            return DEMO_DIRECTORY
        if is_local_path(place):
            return await _local(place, quant)
        where = repository_of(place)
        return await self.hub.fetch(
            where.name, progress=progress, files=files, quant=quant, revision=where.revision
        )

    async def pull(
        self,
        source: str | None,
        model_id: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        verify: bool = False,
    ) -> Pulled:
        """Have the files on this machine. Raises as `resolve`, and `BadRequest` for a path."""
        place = source or model_id
        if place in (DEMO, DEMO_ID):
            size = sum(path.stat().st_size for path in DEMO_DIRECTORY.iterdir() if path.is_file())
            return Pulled(DEMO_DIRECTORY, None, size)
        if is_local_path(place):
            raise BadRequest(f"{clip(place)} is on this machine already: there is nothing to pull")
        where = repository_of(place)
        return await self.hub.pull(
            where.name, progress=progress, quant=quant, revision=where.revision, verify=verify
        )


@attrs.frozen
class Repository:
    """A repository of the hub; ``revision`` None is its ``main``."""

    name: str
    revision: str | None = None


def repository_of(place: str) -> Repository:
    """The repository that *place* means: ``[scheme:]org/name[@revision]``. `BadRequest`."""
    scheme, colon, rest = place.partition(":")
    if colon:
        if scheme not in HUB_SCHEMES:
            raise BadRequest(f"there is no source scheme '{clip(scheme)}'", param="source")
        place = rest
    name, _, revision = place.partition("@")
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise BadRequest(
            f"'{clip(place)}' is no model source: org/name, a path or {DEMO}", param="source"
        )
    return Repository(name, revision if "@" in place else None)


async def _local(place: str, quant: str | None) -> Path:
    def find() -> Path | None:
        path = Path(place).expanduser()
        if path.is_dir():
            return place_in(path.resolve(), quant)
        # Not resolved: what a link leads to may be named without its parts and precision.
        return place_of_file(path.absolute(), quant) if path.is_file() else None

    path = await trio.to_thread.run_sync(find)
    if path is None:
        raise CheckpointError(f"there is no directory or file {clip(place)}", param="source")
    return path
