"""A GGUF file on the disk: its header, and the bytes of its tensors. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.gguf_header import (
    MAX_HEADER_BYTES,
    GgufHeader,
    Incomplete,
    Value,
    parse_header,
)
from cortex.engine.load.raw_file import RawFile

FIRST_BYTES = 8 << 20  # most headers end within it


class GgufFile:
    """An open file whose header holds. Use as a context manager; raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self._file = RawFile(path)
        self.name = self._file.name
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> GgufFile:
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

    @property
    def metadata(self) -> Mapping[str, Value]:
        return self.header.metadata

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return self.header.entries

    def read_into(self, entry: TensorEntry, view: memoryview, check: Callable[[int], None]) -> None:
        """Fill the writable *view*, of the entry's size. See `RawFile.read_into` for *check*."""
        self._file.read_into(entry.begin, view, check)

    def _read_header(self) -> GgufHeader:
        size = self._file.size
        beginning = b""
        while True:
            wanted = min(size, max(FIRST_BYTES, 2 * len(beginning)), MAX_HEADER_BYTES)
            beginning += self._file.read(len(beginning), wanted - len(beginning))
            try:
                return parse_header(beginning, size, self.name)
            except Incomplete:
                continue


def read_metadata(path: Path) -> Mapping[str, Value]:
    """The metadata of the file at *path*."""
    with GgufFile(path) as file:
        return file.metadata
