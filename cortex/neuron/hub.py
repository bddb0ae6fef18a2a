"""Models from a Hugging Face hub, through the cache that its own tools use.

`huggingface_hub` resolves revisions, lists files and defines the cache's layout; the bytes come by
our own transfer, because the library starts a file again from zero after its process was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio

from cortex.config.neuron import NeuronConfig
from cortex.errors import (
    BadRequest,
    CheckpointError,
    SourceUnavailable,
    UnsupportedLoad,
    clip,
)
from cortex.neuron.download import REFUSALS, Downloader, Patience, refuse
from cortex.neuron.hollow_files import header, write_hollow
from cortex.neuron.hub_files import (
    CONFIG,
    INDEX,
    SINGLE,
    Chosen,
    Files,
    RemoteFile,
    choose_files,
    choose_weights,
    shard_names,
)
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.model_place import place_in
from cortex.neuron.partial_file import HOLLOW, draft_of, is_there, remove_orphans
from cortex.service import logs

PARALLEL_FILES = 4
REVISION = "main"
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as the hub's own tools have it

_COMMIT = re.compile(r"[0-9a-f]{40}")

log = logs.get("neuron.hub")


def cache_directory(config: NeuronConfig, environ: Mapping[str, str] = os.environ) -> Path:
    """``hf_cache``, else ``HF_HUB_CACHE``, else ``HF_HOME/hub``, else the tools' default."""
    if config.hf_cache is not None:
        return config.hf_cache.expanduser()
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


class _Offline(Exception):
    """The hub cannot be reached, or must not be."""


@attrs.frozen
class _Listing:
    commit: str
    files: tuple[RemoteFile, ...]


@attrs.frozen
class _Place:
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


@attrs.frozen(eq=False)
class HuggingFaceHub:
    """*endpoint* None means the hub's own; *token* is sent to the hub, never beyond a redirect to
    another host."""

    cache: Path
    endpoint: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    offline: bool = False
    patience: Patience = attrs.field(factory=Patience)

    @classmethod
    def from_config(
        cls, config: NeuronConfig, environ: Mapping[str, str] = os.environ
    ) -> HuggingFaceHub:
        endpoint = config.hub_endpoint or environ.get("HF_ENDPOINT")
        return cls(
            cache_directory(config, environ),
            endpoint.rstrip("/") if endpoint else None,
            environ.get("HF_TOKEN", "").strip() or None,
            config.offline or environ.get("HF_HUB_OFFLINE", "").upper() in TRUE,
        )

    async def fetch(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        files: Files,
        quant: str | None = None,
    ) -> Path:
        """The directory with *repository*'s model, or its GGUF file that *quant* names. With the
        hub out of reach: the snapshot in the cache, if it is whole. *progress* hears "resolve" for
        the small files and "download" for the weights. `BadRequest`, `CheckpointError`,
        `UnsupportedLoad` or `SourceUnavailable`; what came is kept then, and on cancellation.
        """
        progress("resolve", 0, 0)
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        try:
            try:
                listing = await self._list(repository)
            except _Offline as exc:
                return await trio.to_thread.run_sync(_cached, repository, folder, quant, exc)
            place = _Place(repository, folder, listing.commit)
            chosen = choose_files(repository, listing.files, quant)
            return await self._fetch(place, listing.files, chosen, progress, files)
        except OSError as exc:
            raise SourceUnavailable(
                f"the cache of models cannot be used: {exc.strerror or clip(exc)}"
            ) from exc

    async def _fetch(
        self,
        place: _Place,
        listed: Sequence[RemoteFile],
        chosen: Chosen,
        progress: ReportProgress,
        files: Files,
    ) -> Path:
        await trio.to_thread.run_sync(remove_orphans, place.folder, place.commit, time.time())
        small, weights = chosen.small, chosen.gguf
        within = weights[0].name if weights else ""
        async with self._client() as client:
            await self._download(client, place, small, partial(progress, "resolve"))
            if not weights:
                index = None
                if any(file.name == INDEX for file in small):
                    index = await trio.to_thread.run_sync((place.snapshot / INDEX).read_bytes)
                weights = choose_weights(place.repository, listed, index)
            missing = await trio.to_thread.run_sync(place.missing, weights)
            if missing and files == "metadata":
                await self._hollow(client, place, small, weights)
                return place.hollow / within
            await self._download(client, place, weights, partial(progress, "download"))
        await trio.to_thread.run_sync(_write_ref, place)
        return place.snapshot / within

    async def _list(self, repository: str) -> _Listing:
        if self.offline:
            raise _Offline("the neuron is offline by its configuration")
        with trio.move_on_after(self.patience.listing):
            return await trio.to_thread.run_sync(
                self._list_blocking, repository, abandon_on_cancel=True
            )
        raise _Offline(f"the hub did not answer within {self.patience.listing:g} s")

    def _list_blocking(self, repository: str) -> _Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
        )

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        try:
            info = api.model_info(
                repository, revision=REVISION, files_metadata=True, timeout=self.patience.listing
            )
        except HFValidationError as exc:
            raise BadRequest(f"the hub allows no name like '{clip(repository)}'") from exc
        except GatedRepoError as exc:
            raise CheckpointError(
                f"{clip(repository)} is gated: accept its terms and set HF_TOKEN"
            ) from exc
        except RepositoryNotFoundError as exc:
            raise CheckpointError(
                f"the hub has no model {clip(repository)}, or shows it to others only"
            ) from exc
        except HfHubHTTPError as exc:
            status = exc.response.status_code
            if status in REFUSALS:
                refuse(repository, status)
            raise _Offline(f"the hub answered {status}") from exc
        except Exception as exc:  # whatever its HTTP client raises when there is no network
            raise _Offline(f"the hub cannot be reached: {clip(exc, 200)}") from exc
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise CheckpointError(f"the hub names no commit of {clip(repository)}")
        return _Listing(info.sha, tuple(_remote_files(info.siblings or ())))

    async def _download(
        self,
        client: httpx.AsyncClient,
        place: _Place,
        files: Sequence[RemoteFile],
        report: Callable[[int, int], None],
    ) -> None:
        missing = await trio.to_thread.run_sync(place.missing, files)
        total = sum(file.size for file in files)
        done = total - sum(file.size for file in missing)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(done, total)

        advance(0)
        downloader = Downloader(client, advance, self.patience)

        async def one(file: RemoteFile) -> None:
            blob = place.blob(file)
            await downloader.fetch(self._url(place, file), file, blob)
            await trio.to_thread.run_sync(_link, place, place.snapshot / file.name, blob)

        await _side_by_side([partial(one, file) for file in missing])

    async def _hollow(
        self,
        client: httpx.AsyncClient,
        place: _Place,
        small: Sequence[RemoteFile],
        weights: Sequence[RemoteFile],
    ) -> None:
        """Make ``place.hollow`` what an estimate needs, for some kilobytes."""
        draft = partial(draft_of, place.folder)

        async def one(file: RemoteFile) -> None:
            target = place.hollow / file.name
            if not await trio.to_thread.run_sync(is_there, target, file):
                beginning = await header(client, self._url(place, file), file)
                await trio.to_thread.run_sync(write_hollow, target, beginning, file.size, draft)

        await _side_by_side([partial(one, file) for file in weights])
        for file in small:
            await trio.to_thread.run_sync(
                _link, place, place.hollow / file.name, place.snapshot / file.name
            )

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(self.patience.read, connect=self.patience.connect)
        return httpx.AsyncClient(headers=headers, timeout=timeout, follow_redirects=True)

    def _url(self, place: _Place, file: RemoteFile) -> str:
        from huggingface_hub import hf_hub_url

        return str(
            hf_hub_url(place.repository, file.name, revision=place.commit, endpoint=self.endpoint)
        )


async def _side_by_side(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run *works* together, a few at a time; the first failure ends the others and is raised as it
    is."""
    limit = trio.CapacityLimiter(PARALLEL_FILES)
    failure: BaseException | None = None

    async def limited(work: Callable[[], Awaitable[None]]) -> None:
        async with limit:
            await work()

    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(limited, work)
    except* Exception as group:
        failure = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
    if failure is not None:
        raise failure


def _remote_files(siblings: Any) -> list[RemoteFile]:
    files: list[RemoteFile] = []
    for sibling in siblings:
        lfs = sibling.lfs
        etag = lfs.sha256 if lfs is not None else sibling.blob_id
        size = lfs.size if lfs is not None else sibling.size
        if isinstance(etag, str) and isinstance(size, int):
            file = RemoteFile(str(sibling.rfilename), size, etag, lfs is not None)
            if file.is_sound:
                files.append(file)
    return files


def _cached(repository: str, folder: Path, quant: str | None, cause: Exception) -> Path:
    """The snapshot that ``main`` last meant here, or the GGUF file in it that *quant* names.

    `SourceUnavailable` unless it is whole.
    """
    what = "is not in the cache"
    with contextlib.suppress(FileNotFoundError, ValueError):
        commit = (folder / "refs" / REVISION).read_text().strip()
        if _COMMIT.fullmatch(commit):
            snapshot = _Place(repository, folder, commit).snapshot
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


def _link(place: _Place, name: Path, target: Path) -> None:
    """Make *name* a relative link to *target*, in place of what may be there."""
    name.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(place.folder)
    draft.symlink_to(os.path.relpath(target, name.parent))
    draft.replace(name)


def _write_ref(place: _Place) -> None:
    ref = place.folder / "refs" / REVISION
    ref.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(place.folder)
    draft.write_text(place.commit)
    draft.replace(ref)
