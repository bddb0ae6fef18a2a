"""Models from a Hugging Face hub, through the cache that its own tools use.

`huggingface_hub` resolves revisions, lists files and defines the cache's layout; the bytes come by
our own transfer, because the library starts a file again from zero after its process was killed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import httpx
import trio

from cortex.config.neuron import NeuronConfig
from cortex.errors import BadRequest, CheckpointError, DiskFull, SourceUnavailable, clip
from cortex.neuron.download import Downloader, Patience
from cortex.neuron.hollow_files import header, write_hollow
from cortex.neuron.hub_files import (
    INDEX,
    Chosen,
    Files,
    Pulled,
    RemoteFile,
    choose_files,
    choose_weights,
)
from cortex.neuron.hub_listing import (
    Listing,
    OutOfReach,
    UnknownRepository,
    list_files,
    near_names,
)
from cortex.neuron.partial_file import draft_of, held, is_there, remove_orphans
from cortex.neuron.snapshots import MAIN, Place, cached, link, write_ref
from cortex.neuron.verification import blobs_of, damaged_files
from cortex.service import logs

if TYPE_CHECKING:  # it needs numpy, and this is to run without
    from cortex.neuron.jobs import ReportProgress

PARALLEL_FILES = 4
LOOK_UPS = 4  # of repositories, that wait for the hub at a time
NEAR_SECONDS = 5.0  # for a hint
SPARE_BYTES = 64 << 20  # of the disk, that a fetch leaves free
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as the hub's own tools have it

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")

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


def free_bytes(folder: Path) -> int:
    """What the disk that *folder* is on, or will be, has room for."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@attrs.frozen(eq=False)
class HuggingFaceHub:
    """*endpoint* None means the hub's own; *token* is sent to the hub, never beyond a redirect to
    another host."""

    cache: Path
    endpoint: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    offline: bool = False
    patience: Patience = attrs.field(factory=Patience)
    free_bytes: Callable[[Path], int] = free_bytes
    # Threads of their own: one whose hub never ends its answer is left behind, and would otherwise
    # be lacking for everything else that this process does in threads.
    _look_ups: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(LOOK_UPS), init=False
    )

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
        revision: str | None = None,
    ) -> Path:
        """The directory with *repository*'s model, or its GGUF file that *quant* names. With the
        hub out of reach: the snapshot in the cache, if it is whole. *progress* hears "resolve" for
        the small files and "download" for the weights. *revision* None is ``main``. `BadRequest`,
        `CheckpointError`, `UnsupportedLoad`, `DiskFull` or `SourceUnavailable`; what came is kept
        then, and on cancellation.
        """
        pulled = await self._get(repository, revision, quant, progress, files, verify=False)
        return pulled.path

    async def pull(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        revision: str | None = None,
        verify: bool = False,
    ) -> Pulled:
        """As `fetch`, for its own sake. With *verify* what is here is hashed again, heard of as
        "verify", and what is damaged is fetched anew; `CheckpointError` where the hub is out of
        reach for that.
        """
        try:
            return await self._get(repository, revision, quant, progress, "all", verify=verify)
        except UnknownRepository as exc:
            names: list[str] = []
            with trio.move_on_after(NEAR_SECONDS):
                names = await trio.to_thread.run_sync(
                    partial(near_names, repository, endpoint=self.endpoint, token=self.token),
                    abandon_on_cancel=True,
                    limiter=self._look_ups,
                )
            if not names:
                raise
            hint = f"did you mean {clip(', '.join(names), 300)}?"
            raise CheckpointError(f"{exc.message}; {hint}") from exc

    async def _get(
        self,
        repository: str,
        revision: str | None,
        quant: str | None,
        progress: ReportProgress,
        files: Files,
        *,
        verify: bool,
    ) -> Pulled:
        progress("resolve", 0, 0)
        revision = _checked(revision)
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        try:
            try:
                listing = await self._list(repository, revision)
            except OutOfReach as exc:
                return await self._have(repository, folder, revision, quant, progress, exc, verify)
            place = Place(repository, folder, listing.commit)
            chosen = choose_files(repository, listing.files, quant)
            pulled = await self._fetch(place, listing.files, chosen, progress, files, verify)
            if files == "all" and revision != listing.commit:
                await trio.to_thread.run_sync(write_ref, place, revision)
            return pulled
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("the disk with the cache of models is full") from exc
            raise SourceUnavailable(
                f"the cache of models cannot be used: {exc.strerror or clip(exc)}"
            ) from exc

    async def _have(
        self,
        repository: str,
        folder: Path,
        revision: str,
        quant: str | None,
        progress: ReportProgress,
        cause: Exception,
        verify: bool,
    ) -> Pulled:
        """What the cache has, with the hub out of reach because of *cause*."""
        path = await trio.to_thread.run_sync(cached, repository, folder, revision, quant, cause)
        place = Place(repository, folder, path.relative_to(folder / "snapshots").parts[0])
        files = await trio.to_thread.run_sync(blobs_of, place.snapshot)
        if verify:
            damaged = await damaged_files(place.snapshot, files, partial(progress, "verify"))
            if damaged:
                names = ", ".join(file.name for file in damaged)
                raise CheckpointError(f"damaged, and {cause}: {clip(names, 300)}")
        size = sum(file.size for file in files)
        return Pulled(path, place.commit, size, online=False)

    async def _fetch(
        self,
        place: Place,
        listed: Sequence[RemoteFile],
        chosen: Chosen,
        progress: ReportProgress,
        files: Files,
        verify: bool,
    ) -> Pulled:
        await trio.to_thread.run_sync(remove_orphans, place.folder, place.commit, time.time())
        small, weights = chosen.small, chosen.gguf
        within = weights[0].name if weights else ""
        async with self._client() as client:
            repaired = await self._discard_damaged(place, small, progress) if verify else []
            fetched = await self._download(client, place, small, partial(progress, "resolve"))
            if not weights:
                index = None
                if any(file.name == INDEX for file in small):
                    index = await trio.to_thread.run_sync((place.snapshot / INDEX).read_bytes)
                weights = choose_weights(place.repository, listed, index)
            missing = await trio.to_thread.run_sync(place.missing, weights)
            if missing and files == "metadata":
                await self._hollow(client, place, small, weights)
                return Pulled(place.hollow / within, place.commit, 0)
            if verify:
                repaired += await self._discard_damaged(place, weights, progress)
            fetched += await self._download(client, place, weights, partial(progress, "download"))
        size = sum(file.size for file in (*small, *weights))
        names = tuple(file.name for file in repaired)
        return Pulled(place.snapshot / within, place.commit, size, fetched, names)

    async def _discard_damaged(
        self, place: Place, files: Sequence[RemoteFile], progress: ReportProgress
    ) -> list[RemoteFile]:
        """Delete those of *files* that are here and are not what they should be; which."""
        missing = await trio.to_thread.run_sync(place.missing, files)
        here = [file for file in files if file not in missing]
        damaged = await damaged_files(place.snapshot, here, partial(progress, "verify"))
        for file in damaged:
            log.warning("damaged file discarded", repository=place.repository, file=file.name)
            await trio.to_thread.run_sync(place.discard, file)
        return damaged

    async def _list(self, repository: str, revision: str) -> Listing:
        if self.offline:
            raise OutOfReach("the neuron is offline by its configuration")
        with trio.move_on_after(self.patience.listing):
            return await trio.to_thread.run_sync(
                partial(
                    list_files,
                    repository,
                    revision,
                    endpoint=self.endpoint,
                    token=self.token,
                    seconds=self.patience.listing,
                ),
                abandon_on_cancel=True,
                limiter=self._look_ups,
            )
        raise OutOfReach(f"the hub did not answer within {self.patience.listing:g} s")

    async def _download(
        self,
        client: httpx.AsyncClient,
        place: Place,
        files: Sequence[RemoteFile],
        report: Callable[[int, int], None],
    ) -> int:
        """Make *files* be in the snapshot; how many bytes of them were not. `DiskFull` before
        anything is begun that there is no room for."""
        missing = await trio.to_thread.run_sync(place.missing, files)
        await trio.to_thread.run_sync(self._check_room, place, missing)
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
            await trio.to_thread.run_sync(link, place, place.snapshot / file.name, blob)

        await _side_by_side([partial(one, file) for file in missing])
        return sum(file.size for file in missing)

    def _check_room(self, place: Place, missing: Sequence[RemoteFile]) -> None:
        needed = sum(file.size - held(place.blob(file), file) for file in missing)
        if not needed:
            return
        free = self.free_bytes(place.folder)
        if needed + SPARE_BYTES > free:
            raise DiskFull(
                f"{clip(place.repository)} needs {needed >> 20} MiB more on the disk with the cache"
                f" of models ({place.folder.parent}), {free >> 20} MiB are free",
                extras={"required_mb": needed >> 20, "free_mb": free >> 20},
            )

    async def _hollow(
        self,
        client: httpx.AsyncClient,
        place: Place,
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
                link, place, place.hollow / file.name, place.snapshot / file.name
            )

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(self.patience.read, connect=self.patience.connect)
        return httpx.AsyncClient(headers=headers, timeout=timeout, follow_redirects=True)

    def _url(self, place: Place, file: RemoteFile) -> str:
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


def _checked(revision: str | None) -> str:
    """*revision* as the hub and a path in the cache may be asked for it."""
    if revision is None:
        return MAIN
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise BadRequest(f"'{clip(revision)}' is no revision", param="revision")
    return revision
