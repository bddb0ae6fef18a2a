"""A weight file, read and never mapped: one truncated underneath is an error then, not a signal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cortex.errors import CheckpointError, clip

READ_BYTES = 16 << 20  # at a time, between two looks at whether to go on


class RawFile:
    """An open file. Close it. Raises CheckpointError, naming the file by its last part."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be read: {clip(error.strerror)}") from error
        self.size = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def read(self, begin: int, count: int) -> bytes:
        """*count* bytes from *begin* on."""
        parts = []
        self._file.seek(begin)
        while count:
            part = self._file.read(count)
            if not part:
                raise self._truncated()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def read_into(self, begin: int, view: memoryview, check: Callable[[int], None]) -> None:
        """Fill the writable *view* of bytes with what lies from *begin* on.

        *check* is called with the number of bytes read since its last call; what it raises ends
        the read.
        """
        self._file.seek(begin)
        at = 0
        while at < len(view):
            read = self._file.readinto(view[at : at + READ_BYTES])
            if not read:
                raise self._truncated()
            at += read
            check(read)

    def _truncated(self) -> CheckpointError:
        return CheckpointError(f"{self.name}: truncated while it was read")
