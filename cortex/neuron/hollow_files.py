"""Weights without their data: files that have the header and the size, and a hole.

An estimate reads headers and sizes only, and gets both for some kilobytes of transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import trio

from cortex.engine.load.gguf_header import Incomplete, parse_header
from cortex.errors import CheckpointError, SourceUnavailable, clip
from cortex.neuron.download import refuse
from cortex.neuron.gguf_choice import SUFFIX
from cortex.neuron.hub_files import RemoteFile

LENGTH_BYTES = 8
FIRST_BYTES = 256 << 10  # most headers of safetensors end within it
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
GGUF_FIRST_BYTES = 2 << 20  # a vocabulary of 32 k tokens ends within it, one of 152 k at 6 MiB


async def header(client: httpx.AsyncClient, url: str, file: RemoteFile) -> bytes:
    """The beginning of *file* that holds its header, as the engine's readers prove it."""
    if file.name.endswith(SUFFIX):
        return await _gguf_header(client, url, file)
    data = await _part(client, url, file, 0, FIRST_BYTES) if file.size else b""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, file.size - LENGTH_BYTES):
        raise CheckpointError(f"{clip(file.name)} has no safetensors header")
    end = LENGTH_BYTES + length
    if end > len(data):
        data += await _part(client, url, file, len(data), end)
    return data[:end]


async def _gguf_header(client: httpx.AsyncClient, url: str, file: RemoteFile) -> bytes:
    """A GGUF header does not say how long it is: fetch on until it can be read."""
    data, end = b"", GGUF_FIRST_BYTES
    while True:
        if len(data) < file.size:
            data += await _part(client, url, file, len(data), end)
        try:
            found = await trio.to_thread.run_sync(
                parse_header, data, file.size, file.name, abandon_on_cancel=True
            )
        except Incomplete:
            end = 2 * len(data)
            continue
        return data[: found.data]


async def _part(
    client: httpx.AsyncClient, url: str, file: RemoteFile, begin: int, end: int
) -> bytes:
    """Bytes *begin* to *end* of *file*, fewer where it is shorter. A server that cannot send a part
    sends all, and is left when enough has come."""
    end = min(end, file.size)
    headers = {"range": f"bytes={begin}-{end - 1}", "accept-encoding": "identity"}
    data, sent_from = bytearray(), begin
    try:
        async with client.stream("GET", url, headers=headers) as response:
            refuse(file.name, response.status_code)
            part = response.headers.get("content-range", "")
            if response.status_code == 200:
                sent_from = 0
            elif response.status_code != 206 or not part.startswith(f"bytes {begin}-"):
                raise SourceUnavailable(
                    f"{clip(file.name)}: the hub answered {response.status_code} to a range"
                )
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) >= end - sent_from:
                    break
    except httpx.HTTPError as exc:
        cause = clip(str(exc) or type(exc).__name__)
        raise SourceUnavailable(f"{clip(file.name)} cannot be read: {cause}") from exc
    if len(data) < end - sent_from:
        raise SourceUnavailable(f"{clip(file.name)}: the hub sent less than was asked for")
    return bytes(data[begin - sent_from : end - sent_from])


def write_hollow(target: Path, beginning: bytes, size: int, draft: Callable[[], Path]) -> None:
    """Make *target* a file of *size* bytes with that *beginning*, at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = draft()
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)
    path.replace(target)
