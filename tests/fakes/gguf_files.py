"""GGUF files, written byte by byte, so that they can be wrong in every place."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

U32, STRING, ARRAY = 4, 8, 9


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, data: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + data)


def row(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor in the table; *dims* are innermost first."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def file(
    pairs: Iterable[bytes] = (),
    rows: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int | None = None,
    keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    pairs, rows = list(pairs), list(rows)
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(rows) if tensors is None else tensors,
        len(pairs) if keys is None else keys,
    )
    head += b"".join(pairs) + b"".join(rows)
    return head + b"\0" * (-len(head) % alignment) + data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
