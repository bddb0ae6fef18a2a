"""Safetensors files: the header is proven before a byte of data is touched.

A file is an 8-byte little-endian length, a JSON header of that length, and the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.json_file import parse_object
from cortex.engine.load.raw_file import RawFile
from cortex.engine.load.source import bytes_of
from cortex.errors import CheckpointError, clip

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8
MAX_NAME = 512  # characters

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Known to the format; a model may have such tensors, but none that is computed with here.
OTHER_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip


def _integer(value: object, what: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise CheckpointError(f"{where}: {what} is not a size")
    return value


def _entry(name: str, raw: Any, data: int, where: str) -> TensorEntry:
    """The checked entry of tensor *name*; *data* is where the file's data begins."""
    where = f"{where}: tensor '{clip(name, 80)}'"
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{where}: the name is too long")
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: the entry is not an object")
    dtype, shape, offsets = raw.get("dtype"), raw.get("shape"), raw.get("data_offsets")
    if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in OTHER_SIZES):
        raise CheckpointError(f"{where}: unknown dtype {clip(dtype, 40)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: the shape is not a list of up to {MAX_DIMENSIONS} sizes")
    sizes = tuple(_integer(size, "a dimension", where) for size in shape)
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets is not a pair")
    begin, end = (_integer(offset, "an offset", where) for offset in offsets)
    width = DTYPES[dtype].itemsize if dtype in DTYPES else OTHER_SIZES[dtype]
    size = math.prod(sizes) * width
    if end - begin != size:
        raise CheckpointError(f"{where}: {end - begin} bytes of data for a shape of {size} bytes")
    return TensorEntry(name, dtype, sizes, data + begin, size)


def _check_extents(entries: list[TensorEntry], data: int, size: int, where: str) -> None:
    """The data of *entries* fills the file from *data* to its *size*: no gap, no overlap."""
    at = data
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.size)):
        shown = clip(entry.name, 80)
        if entry.begin < at:
            raise CheckpointError(f"{where}: tensor '{shown}' overlaps another")
        if entry.begin > at:
            raise CheckpointError(f"{where}: unused bytes before tensor '{shown}'")
        at = entry.begin + entry.size
        if at > size:
            raise CheckpointError(f"{where}: truncated, tensor '{shown}' ends beyond the file")
    if at < size:
        raise CheckpointError(f"{where}: unused bytes after the last tensor")


class SafetensorsFile:
    """An open file whose header holds. Use as a context manager; raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self._file = RawFile(path)
        self.name = self._file.name
        try:
            self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read_into(
        self, entry: TensorEntry, target: torch.Tensor, check: Callable[[int], None]
    ) -> None:
        """Fill the contiguous CPU tensor *target*, of the entry's dtype and size.

        *check* is called with the number of bytes read since its last call; what it raises ends
        the read.
        """
        self._file.read_into(entry.begin, bytes_of(target), check)

    def _read_header(self) -> dict[str, TensorEntry]:
        size = self._file.size
        if size < 8:
            raise CheckpointError(f"{self.name}: too short for a safetensors file")
        length = int.from_bytes(self._file.read(0, 8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.name}: a header of {length} bytes is over the limit")
        if length < 2 or 8 + length > size:
            raise CheckpointError(f"{self.name}: the header of {length} bytes is not all there")
        header = self._file.read(8, length)
        raw = parse_object(header, self.name)
        raw.pop("__metadata__", None)
        data = 8 + length
        entries = [_entry(name, value, data, self.name) for name, value in raw.items()]
        _check_extents(entries, data, size, self.name)
        return {entry.name: entry for entry in entries}
