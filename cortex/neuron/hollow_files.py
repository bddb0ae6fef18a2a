"""Weights without their data: safetensors files that have the header and the size, and a hole.

An estimate reads headers and sizes only, and gets both for some kilobytes of transfer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from cortex.errors import CheckpointError, SourceUnavailable, clip
from cortex.neuron.download import refuse
from cortex.neuron.hub_files import RemoteFile

LENGTH_BYTES = 8
FIRST_BYTES = 256 << 10  # most headers end within it
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_FROM_ZERO = re.compile(r"bytes 0-.*")


async def header(client: httpx.AsyncClient, url: str, file: RemoteFile) -> bytes:
    """The beginning of *file*: its header's length (8 bytes, little-endian) and the header."""
    data = await _beginning(client, url, file, FIRST_BYTES) if file.size else b""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, file.size - LENGTH_BYTES):
        raise CheckpointError(f"{clip(file.name)} has no safetensors header")
    if LENGTH_BYTES + length > len(data):
        data = await _beginning(client, url, file, LENGTH_BYTES + length)
    return data[: LENGTH_BYTES + length]


async def _beginning(client: httpx.AsyncClient, url: str, file: RemoteFile, length: int) -> bytes:
    """The first *length* bytes of *file*, fewer where it is shorter. A server that cannot send a
    part sends all, and is left when enough has come."""
    length = min(length, file.size)
    headers = {"range": f"bytes=0-{length - 1}", "accept-encoding": "identity"}
    data = bytearray()
    try:
        async with client.stream("GET", url, headers=headers) as response:
            refuse(file.name, response.status_code)
            part = response.headers.get("content-range", "")
            if response.status_code != 200 and not (
                response.status_code == 206 and _FROM_ZERO.fullmatch(part)
            ):
                raise SourceUnavailable(
                    f"{clip(file.name)}: the hub answered {response.status_code} to a range"
                )
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) >= length:
                    break
    except httpx.HTTPError as exc:
        cause = clip(str(exc) or type(exc).__name__)
        raise SourceUnavailable(f"{clip(file.name)} cannot be read: {cause}") from exc
    if len(data) < length:
        raise SourceUnavailable(f"{clip(file.name)}: the hub sent less than was asked for")
    return bytes(data[:length])


def write_hollow(target: Path, beginning: bytes, size: int, draft: Callable[[], Path]) -> None:
    """Make *target* a file of *size* bytes with that *beginning*, at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = draft()
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)
    path.replace(target)
