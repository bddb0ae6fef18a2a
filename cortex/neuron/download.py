"""Fetches one blob into the cache, from where the last attempt stopped."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import httpx
import trio

from cortex.errors import CheckpointError, SourceUnavailable, clip
from cortex.neuron.hub_files import RemoteFile
from cortex.neuron.partial_file import PartialFile, is_there
from cortex.service import logs

ATTEMPTS = 5  # in a row that came no further
WRITE_BYTES = 1 << 20
REFUSALS = {
    401: "it wants a token: set HF_TOKEN",
    403: "this token may not have it (gated models: accept the terms on the hub)",
    404: "it is not there",
    410: "it is gone",
}

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")

log = logs.get("neuron.download")


@attrs.frozen
class Patience:
    """Seconds. ``read`` bounds the wait for the next bytes, ``back_off`` is doubled after each
    attempt that brought nothing, ``lock_poll`` is between two looks at another's lock."""

    listing: float = 20.0
    connect: float = 10.0
    read: float = 60.0
    back_off: float = 2.0
    lock_poll: float = 1.0


class _Interrupted(Exception):
    """The transfer stopped early; what came is kept."""


@attrs.frozen(eq=False)
class Downloader:
    """*client* follows redirects and bounds each read; *advance* gets bytes as they are stored,
    negative ones when they turned out wrong. One that returned has advanced by the file's size."""

    client: httpx.AsyncClient
    advance: Callable[[int], None]
    patience: Patience = attrs.field(factory=Patience)

    async def fetch(self, url: str, file: RemoteFile, blob: Path) -> None:
        """Make *blob* hold *file*. `SourceUnavailable` when it cannot be had now,
        `CheckpointError` when the server does not have what it announced, `OSError` from the disk.
        """
        partial = await self._lock(file, blob)
        if partial is None:
            self.advance(file.size)
            return
        with partial:
            self.advance(partial.held)
            while True:
                resumed = partial.held > 0
                await self._complete(url, partial)
                if await trio.to_thread.run_sync(partial.matches, trio.from_thread.check_cancelled):
                    break
                await self._empty(partial)
                if not resumed:
                    raise SourceUnavailable(f"{clip(file.name)} arrived damaged")
                log.warning("partial file was damaged", file=file.name)
            await trio.to_thread.run_sync(partial.publish)

    async def _lock(self, file: RemoteFile, blob: Path) -> PartialFile | None:
        """The partial file, ours alone; None when *blob* is there."""
        while not await trio.to_thread.run_sync(is_there, blob, file):
            partial = await trio.to_thread.run_sync(PartialFile.lock, blob, file)
            if partial is None:
                await trio.sleep(self.patience.lock_poll)
                continue
            # Another may have published between our look at the blob and our lock.
            if not is_there(blob, file):
                return partial
            with partial:
                partial.discard()
        return None

    async def _complete(self, url: str, partial: PartialFile) -> None:
        furthest, fruitless, pause = partial.held, 0, self.patience.back_off
        while partial.held < partial.file.size:
            try:
                await self._transfer(url, partial)
            except (httpx.HTTPError, _Interrupted) as exc:
                name, cause = clip(partial.file.name), clip(str(exc) or type(exc).__name__)
                if partial.held > furthest:
                    furthest, fruitless, pause = partial.held, 0, self.patience.back_off
                fruitless += 1
                if fruitless >= ATTEMPTS:
                    raise SourceUnavailable(f"{name} cannot be fetched: {cause}") from exc
                log.warning("transfer interrupted", file=name, held=partial.held, cause=cause)
                await trio.sleep(pause)
                pause *= 2

    async def _transfer(self, url: str, partial: PartialFile) -> None:
        file = partial.file
        headers = {"accept-encoding": "identity"}
        if partial.held:
            headers["range"] = f"bytes={partial.held}-"
        async with self.client.stream("GET", url, headers=headers) as response:
            await self._begin(response, partial)
            await self._store(response, partial)
        if partial.held < file.size:
            raise _Interrupted(f"the transfer ended at {partial.held} of {file.size} bytes")

    async def _begin(self, response: httpx.Response, partial: PartialFile) -> None:
        """Bring *partial* to where *response*'s body begins."""
        status = response.status_code
        refuse(partial.file.name, status)
        if status == 416:  # what we hold is not a beginning of it
            await self._empty(partial)
            raise _Interrupted("the hub refused to go on")
        if status == 200:  # it sends all, from the start
            await self._empty(partial)
        elif status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != partial.held:
                await self._empty(partial)
                raise _Interrupted("the hub sent another part than was asked for")
        else:
            raise _Interrupted(f"the hub answered {status}")

    async def _store(self, response: httpx.Response, partial: PartialFile) -> None:
        waiting = bytearray()

        async def flush() -> None:
            data = bytes(waiting)
            waiting.clear()
            if partial.held + len(data) > partial.file.size:
                await self._empty(partial)
                raise CheckpointError(f"{clip(partial.file.name)} is longer than announced")
            await trio.to_thread.run_sync(partial.append, data)
            self.advance(len(data))

        try:
            async for data in response.aiter_raw():
                waiting += data
                if len(waiting) >= WRITE_BYTES:
                    await flush()
        except httpx.HTTPError:
            await flush()
            raise
        await flush()

    async def _empty(self, partial: PartialFile) -> None:
        held = partial.held
        if held:
            await trio.to_thread.run_sync(partial.empty)
            self.advance(-held)


def refuse(name: str, status: int) -> None:
    """Raise `CheckpointError` for a *status* that trying again will not change."""
    if status in REFUSALS:
        raise CheckpointError(f"{clip(name)}: the hub answered {status}; {REFUSALS[status]}")
