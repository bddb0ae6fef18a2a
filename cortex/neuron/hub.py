"""Models from a Hugging Face hub, through the cache that its own tools use.

`huggingface_hub` resolves revisions, lists files and defines the cache's layout; the bytes come by
our own transfer, because the library starts a file again from zero after its process was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import httpx
import trio

from cortex.config.neuron import NeuronConfig
from cortex.errors import CheckpointError, SourceUnavailable, clip
from cortex.neuron.download import Downloader, remove_orphans
from cortex.neuron.hub_files import CONFIG, Choice, RemoteFile, choose
from cortex.service import logs

LIST_SECONDS = 20.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
PARALLEL_FILES = 4
HEADER_BYTES = 8
MAX_HEADER = 100 << 20  # of a safetensors file
REVISION = "main"

Files = Literal["all", "metadata"]
Progress = Callable[[str, int, int], None]

log = logs.get("neuron.hub")


def cache_directory(config: NeuronConfig, environ: Mapping[str, str] = os.environ) -> Path:
    """``hf_cache``, else ``HF_HUB_CACHE``, else ``HF_HOME/hub``, else the tools' default."""
    if config.hf_cache is not None:
        return config.hf_cache.expanduser()
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    home = environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


class _Offline(Exception):
    """The hub cannot be reached, or must not be."""


@attrs.frozen
class _Listing:
    commit: str
    files: tuple[RemoteFile, ...]


@attrs.frozen(eq=False)
class HuggingFaceHub:
    """*endpoint* None means the hub's own; *token* is sent to the hub, never beyond a redirect to
    another host."""

    cache: Path
    endpoint: str | None = None
    token: str | None = None
    offline: bool = False

    @classmethod
    def from_config(
        cls, config: NeuronConfig, environ: Mapping[str, str] = os.environ
    ) -> HuggingFaceHub:
        offline = config.offline or environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON")
        endpoint = config.hub_endpoint or environ.get("HF_ENDPOINT")
        return cls(
            cache_directory(config, environ),
            endpoint.rstrip("/") if endpoint else None,
            environ.get("HF_TOKEN"),
            offline,
        )

    async def fetch(self, repository: str, *, progress: Progress, files: Files) -> Path:
        """The directory with *repository*'s model. With the hub out of reach: the snapshot in the
        cache, if it is whole."""
        progress("resolve", 0, 0)
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        try:
            listing = await self._list(repository)
        except _Offline as exc:
            return await trio.to_thread.run_sync(self._cached, repository, folder, files, exc)
        choice = choose(repository, listing.files)
        snapshot = folder / "snapshots" / listing.commit
        await trio.to_thread.run_sync(remove_orphans, folder / "blobs", time.time())
        if files == "metadata" and not _has_all(snapshot, choice.weights):
            return await self._metadata(repository, folder, listing, choice)
        await self._download(repository, folder, snapshot, choice.small + choice.weights, progress)
        await trio.to_thread.run_sync(_write_ref, folder, listing.commit)
        return snapshot

    async def _list(self, repository: str) -> _Listing:
        if self.offline:
            raise _Offline("the neuron is offline by its configuration")
        with trio.move_on_after(LIST_SECONDS):
            return await trio.to_thread.run_sync(
                self._list_blocking, repository, abandon_on_cancel=True
            )
        raise _Offline(f"the hub did not answer within {LIST_SECONDS:g} s")

    def _list_blocking(self, repository: str) -> _Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        try:
            info = api.model_info(
                repository, revision=REVISION, files_metadata=True, timeout=LIST_SECONDS
            )
        except GatedRepoError as exc:
            raise CheckpointError(
                f"{clip(repository)} is gated: accept its terms and set HF_TOKEN"
            ) from exc
        except RepositoryNotFoundError as exc:
            raise CheckpointError(
                f"the hub has no model {clip(repository)}, or shows it to others only"
            ) from exc
        except HfHubHTTPError as exc:
            raise _Offline(f"the hub answered with an error: {clip(exc, 200)}") from exc
        except Exception as exc:  # whatever its HTTP client raises when there is no network
            raise _Offline(f"the hub cannot be reached: {clip(exc, 200)}") from exc
        if not info.sha:
            raise CheckpointError(f"the hub names no commit of {clip(repository)}")
        return _Listing(info.sha, tuple(_remote_files(info.siblings or ())))

    def _cached(self, repository: str, folder: Path, files: Files, cause: Exception) -> Path:
        """The snapshot that ``main`` last meant here."""
        with contextlib.suppress(OSError):
            commit = (folder / "refs" / REVISION).read_text().strip()
            snapshot = folder / "snapshots" / commit
            whole = any(snapshot.glob("*.safetensors")) and (snapshot / CONFIG).is_file()
            if commit and "/" not in commit and whole:
                log.info("cached snapshot used", repository=repository, cause=cause)
                return snapshot
        raise SourceUnavailable(f"{clip(repository)} is not in the cache, and {cause}") from cause

    async def _download(
        self,
        repository: str,
        folder: Path,
        snapshot: Path,
        files: tuple[RemoteFile, ...],
        progress: Progress,
    ) -> None:
        missing = [file for file in files if not (snapshot / file.name).is_file()]
        total = sum(file.size for file in files)
        done = total - sum(file.size for file in missing)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("download", done, total)

        advance(0)
        limit = trio.CapacityLimiter(PARALLEL_FILES)
        async with self._client() as client:
            downloader = Downloader(client, advance)

            async def one(file: RemoteFile) -> None:
                blob = folder / "blobs" / file.etag
                async with limit:
                    await downloader.fetch(self._url(repository, snapshot.name, file), file, blob)
                await trio.to_thread.run_sync(_link, snapshot / file.name, blob)

            await _side_by_side([lambda f=file: one(f) for file in missing])

    async def _metadata(
        self, repository: str, folder: Path, listing: _Listing, choice: Choice
    ) -> Path:
        """A directory with the small files and, in place of the weights, files that have their
        headers and their sizes but no data: what an estimate needs, for some kilobytes."""
        snapshot = folder / "snapshots" / listing.commit
        place = folder / "cortex-headers" / listing.commit
        await self._download(repository, folder, snapshot, choice.small, lambda *_: None)
        async with self._client() as client:

            async def one(file: RemoteFile) -> None:
                target = place / file.name
                if not target.is_file():
                    url = self._url(repository, listing.commit, file)
                    header = await _header(client, url, file)
                    await trio.to_thread.run_sync(_write_hollow, target, header, file.size)

            await _side_by_side([lambda f=file: one(f) for file in choice.weights])
        for file in choice.small:
            source = snapshot / file.name
            await trio.to_thread.run_sync(_link, place / file.name, source)
        return place

    def _client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(headers=headers, timeout=timeout, follow_redirects=True)

    def _url(self, repository: str, commit: str, file: RemoteFile) -> str:
        from huggingface_hub import hf_hub_url

        return str(
            hf_hub_url(repository, file.name, revision=commit, endpoint=self.endpoint or None)
        )


async def _side_by_side(works: list[Callable[[], Any]]) -> None:
    """Run *works* together; the first failure ends the others and is raised as it is."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
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
        if etag and size is not None and str(etag).isalnum():
            files.append(RemoteFile(sibling.rfilename, int(size), str(etag), lfs is not None))
    return files


async def _header(client: httpx.AsyncClient, url: str, file: RemoteFile) -> bytes:
    """The header of a safetensors file: its length (8 bytes, little-endian) and its JSON."""
    try:
        size = await _range(client, url, 0, HEADER_BYTES)
        length = int.from_bytes(size, "little")
        if length > min(MAX_HEADER, file.size):
            raise CheckpointError(f"{file.name} has no safetensors header")
        return size + await _range(client, url, HEADER_BYTES, length)
    except httpx.HTTPError as exc:
        raise SourceUnavailable(f"{file.name} cannot be read: {clip(exc)}") from exc


async def _range(client: httpx.AsyncClient, url: str, start: int, length: int) -> bytes:
    headers = {"range": f"bytes={start}-{start + length - 1}", "accept-encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code != 206:
            raise SourceUnavailable(f"the hub answered {response.status_code} to a range")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) >= length:
                break
    if len(data) < length:
        raise SourceUnavailable("the hub sent less than the range asked for")
    return bytes(data[:length])


def _has_all(snapshot: Path, files: tuple[RemoteFile, ...]) -> bool:
    return all((snapshot / file.name).is_file() for file in files)


def _link(name: Path, blob: Path) -> None:
    """Make *name* a relative link to *blob*, in place of what may be there."""
    name.parent.mkdir(parents=True, exist_ok=True)
    draft = name.with_name(f".{name.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    draft.symlink_to(os.path.relpath(blob, name.parent))
    draft.replace(name)


def _write_hollow(target: Path, header: bytes, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(header)
        file.truncate(size)
    draft.replace(target)


def _write_ref(folder: Path, commit: str) -> None:
    ref = folder / "refs" / REVISION
    ref.parent.mkdir(parents=True, exist_ok=True)
    draft = ref.with_name(f".{ref.name}.{os.getpid()}")
    draft.write_text(commit)
    draft.replace(ref)
