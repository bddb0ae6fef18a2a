"""GGUF headers: metadata and the tensor table, proven before a byte of tensor data is touched.

A file is the magic, a version, the counts of tensors and of metadata, typed key-value pairs, the
tensor table, padding, and the data. Layout and numbers are those of the GGUF specification, version
3 (2 differs in nothing that is read here), little-endian. No torch.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cortex.engine.load.entry import TensorEntry
from cortex.engine.quant.types import BY_GGUF_ID
from cortex.errors import CheckpointError, clip

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# The largest headers in use (260 k tokens, with merges, scores and types) have some 20 MB.
MAX_HEADER_BYTES = 64 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME = 512  # bytes
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
MAX_ARRAYS = 1 << 12  # arrays that are elements of others
MAX_DEPTH = 4

# Weights that are not packed, by number: the name that safetensors has for them, and bytes each.
DENSE = {0: ("F32", 4), 1: ("F16", 2), 28: ("F64", 8), 30: ("BF16", 2)}
# Known to the format, but not computed with here: name, weights of a block and bytes of it.
OTHERS = {
    9: ("Q8_1", 32, 40), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in NUMBERS.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# An int, a float, a bool, a string, or an array: a list, or an `array` of numbers.
Value = Any


class Incomplete(Exception):
    """The header goes on behind the bytes at hand, where the file has more."""


@attrs.frozen
class GgufHeader:
    """What a file says of itself. ``data`` is where its tensors' bytes begin."""

    metadata: Mapping[str, Value]
    entries: Mapping[str, TensorEntry]
    data: int


def parse_header(beginning: bytes, size: int, where: str) -> GgufHeader:
    """The header of a file of *size* bytes that has this *beginning*.

    Raises CheckpointError, naming *where*, for what no good file holds, and Incomplete when
    *beginning* is too short to tell.
    """
    cursor = _Cursor(beginning, size, where)
    begin = cursor.take(4, "the magic")
    if beginning[begin:4] != MAGIC:
        raise CheckpointError(f"{where}: not a GGUF file")
    version = cursor.number(_U32, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise CheckpointError(f"{where}: big-endian GGUF files are not supported")
        raise CheckpointError(f"{where}: GGUF version {version} is not supported; known: 2, 3")
    tensors = cursor.count(MAX_TENSORS, "tensors")
    metadata = _metadata(cursor, cursor.count(MAX_KEYS, "keys"))
    table = [_table_row(cursor) for _ in range(tensors)]
    alignment = _alignment(metadata, where)
    data = -(-cursor.at // alignment) * alignment
    if table and data > size:
        raise CheckpointError(f"{where}: truncated, there is no tensor data")
    entries: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in table:
        if name in entries:
            raise CheckpointError(f"{where}: tensor '{clip(name, 80)}' occurs twice")
        entries[name] = _entry(name, shape, kind, data, offset, where)
    _check_extents(entries.values(), data, size, alignment, where)
    return GgufHeader(metadata, entries, data)


@attrs.define
class _Cursor:
    """Reads on in a beginning of a file of ``size`` bytes."""

    data: bytes
    size: int
    where: str
    at: int = 0
    arrays: int = 0

    def take(self, count: int, what: str) -> int:
        """Where the next *count* bytes lie; they are passed."""
        begin = self.at
        if begin + count > min(self.size, MAX_HEADER_BYTES):
            if self.size > MAX_HEADER_BYTES and count <= self.size:
                raise CheckpointError(
                    f"{self.where}: a header of over {MAX_HEADER_BYTES >> 20} MiB, at {what}"
                )
            raise CheckpointError(f"{self.where}: truncated at {what}")
        if begin + count > len(self.data):
            raise Incomplete
        self.at = begin + count
        return begin

    def number(self, kind: struct.Struct, what: str) -> Any:
        return kind.unpack_from(self.data, self.take(kind.size, what))[0]

    def count(self, limit: int, what: str) -> int:
        count: int = self.number(_U64, f"the number of {what}")
        if count > limit:
            raise CheckpointError(f"{self.where}: {count} {what} are over the limit of {limit}")
        return count

    def text(self, what: str) -> str:
        length = self.number(_U64, what)
        begin = self.take(length, what)
        return self.decode(self.data[begin : self.at], what)

    def name(self, what: str) -> str:
        name = self.text(what)
        if not 0 < len(name) <= MAX_NAME:
            raise CheckpointError(f"{self.where}: {what} of {len(name)} characters")
        return name

    def decode(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.where}: {what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> list[str]:
        """*count* strings. The loop runs a few hundred thousand times for one vocabulary."""
        self.take(8 * count, what)  # each has a length at least
        self.at -= 8 * count
        data, at, end, length_at = self.data, self.at, len(self.data), _U64.unpack_from
        found = []
        try:
            for _ in range(count):
                begin = at + 8
                if begin > end:
                    break
                at = begin + length_at(data, at)[0]
                if at > end:
                    at = begin - 8
                    break
                found.append(data[begin:at].decode())
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.where}: {what} has a string that is not UTF-8") from error
        self.at = at
        if len(found) < count:
            self.text(what)  # raises what is wrong
        return found

    def value(self, kind: int, what: str, depth: int = 0) -> Value:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == BOOL:
            return self._bools(1, what)[0]
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._array(what, depth)
        raise CheckpointError(f"{self.where}: {what} has the unknown type {kind}")

    def _array(self, what: str, depth: int) -> Value:
        kind, count = self.number(_U32, what), self.number(_U64, what)
        if count > MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.where}: {what} has {count} elements")
        if kind == STRING:
            return self.texts(count, what)
        if kind == BOOL:
            return self._bools(count, what)
        if kind in NUMBERS:
            numbers = array(NUMBERS[kind])
            begin = self.take(count * _SCALARS[kind].size, what)
            numbers.frombytes(self.data[begin : self.at])
            if sys.byteorder == "big":
                numbers.byteswap()
            return numbers
        self.arrays += count
        if depth >= MAX_DEPTH or self.arrays > MAX_ARRAYS:
            raise CheckpointError(f"{self.where}: {what} has too many arrays in arrays")
        return [self.value(kind, what, depth + 1) for _ in range(count)]

    def _bools(self, count: int, what: str) -> list[bool]:
        begin = self.take(count, what)
        raw = self.data[begin : self.at]
        if raw.translate(None, b"\0\1"):
            raise CheckpointError(f"{self.where}: {what} is neither true nor false")
        return [byte == 1 for byte in raw]


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.name("a metadata key")
        shown = f"'{clip(key, 80)}'"
        if key in metadata:
            raise CheckpointError(f"{cursor.where}: {shown} occurs twice")
        metadata[key] = cursor.value(cursor.number(_U32, shown), shown)
    return metadata


def _table_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, shape (outermost first), type and offset."""
    name = cursor.name("a tensor's name")
    shown = f"tensor '{clip(name, 80)}'"
    dimensions = cursor.number(_U32, shown)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.where}: {shown} has {dimensions} dimensions")
    innermost_first = [cursor.number(_U64, shown) for _ in range(dimensions)]
    kind = cursor.number(_U32, shown)
    return name, tuple(reversed(innermost_first)), kind, cursor.number(_U64, shown)


def _alignment(metadata: Mapping[str, Value], where: str) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise CheckpointError(f"{where}: general.alignment is {clip(alignment, 40)}")
    if alignment & (alignment - 1):
        raise CheckpointError(f"{where}: general.alignment {alignment} is no power of two")
    return alignment


def _entry(
    name: str, shape: tuple[int, ...], kind: int, data: int, offset: int, where: str
) -> TensorEntry:
    where = f"{where}: tensor '{clip(name, 80)}'"
    quant = BY_GGUF_ID.get(kind)
    if kind in DENSE:
        dtype, width = DENSE[kind]
        block = 1
    elif quant is not None:
        dtype, block, width = quant.name.upper(), quant.block, quant.bytes
    elif kind in OTHERS:
        dtype, block, width = OTHERS[kind]
    else:
        raise CheckpointError(f"{where} has the unknown type {kind}")
    count = math.prod(shape)
    if not 0 < count < 1 << 48:
        raise CheckpointError(f"{where} has the shape {clip(list(shape), 80)}")
    if shape[-1] % block:
        raise CheckpointError(f"{where}: {shape[-1]} is not whole {dtype} blocks of {block}")
    return TensorEntry(name, dtype, shape, data + offset, count // block * width, quant)


def _check_extents(
    entries: Iterable[TensorEntry], data: int, size: int, alignment: int, where: str
) -> None:
    """The tensors follow each other, each at the next place that is aligned, within the file."""
    at = data
    for entry in sorted(entries, key=lambda entry: entry.begin):
        shown = f"tensor '{clip(entry.name, 80)}'"
        if entry.begin < at:
            raise CheckpointError(f"{where}: {shown} overlaps another")
        if entry.begin > at:
            raise CheckpointError(f"{where}: unused bytes before {shown}")
        end = entry.begin + entry.size
        if end > size:
            raise CheckpointError(f"{where}: truncated, {shown} ends beyond the file")
        at = data - (data - end) // alignment * alignment
