"""A file that each request's use is written to before its answer's end is.

Writing to a file costs microseconds and survives the end of the process, whatever ends it, since
what was written is the kernel's; a transaction in SQLite costs a hundred times that. So requests
are written here one by one, and from here into the database many at a time. How far that has come
is stored in the same transaction, which makes every entry count once, whenever the process ends.
(When the machine loses its power, the last seconds may be lost.)

Each process has a journal of its own, locked as long as it lives; whoever starts takes over those
that nobody has locked.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import attrs

PATTERN = "usage-*.journal"


@attrs.define(eq=False)
class Journal:
    """``size`` bytes were written, ``applied`` of them have reached the database."""

    path: Path
    descriptor: int
    size: int = 0
    applied: int = 0
    _torn: bool = False

    @classmethod
    def create(cls, directory: Path) -> Journal:
        """A new one in *directory*. OSError when it cannot be had."""
        while True:
            path = directory / f"usage-{os.getpid()}-{secrets.token_hex(4)}.journal"
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
            journal = cls(path, os.open(path, flags, 0o600))
            if journal._lock():
                return journal
            # Somebody who starts just now took it for an orphan: make another.

    @classmethod
    def orphans(cls, directory: Path) -> Iterator[Journal]:
        """Those of processes that are no more, each locked; the caller removes or closes them."""
        for path in sorted(directory.glob(PATTERN)):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            journal = cls(path, descriptor, os.fstat(descriptor).st_size)
            if journal._lock():
                yield journal

    @property
    def name(self) -> str:
        return self.path.name

    def append(self, line: bytes) -> None:
        """Write *line*, which ends in a newline, as a whole. OSError when it cannot be written;
        then nothing of it counts."""
        if self._torn:
            line = b"\n" + line
        written = os.write(self.descriptor, line)
        if written == len(line):
            self.size += written
            self._torn = False
            return
        try:
            os.ftruncate(self.descriptor, self.size)
        except OSError:
            self.size += written
            self._torn = True
        raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")

    def lines(self, limit: int) -> tuple[list[bytes], int]:
        """What is not applied yet, at most *limit* bytes of whole lines (one at least), and where
        they end."""
        data = os.pread(self.descriptor, min(limit, self.size - self.applied), self.applied)
        end = data.rfind(b"\n") + 1
        if end == 0 or self.applied + len(data) >= self.size:
            end = len(data)  # a line may lack its end for ever
        return data[:end].splitlines(), self.applied + end

    def close(self) -> None:
        os.close(self.descriptor)

    def remove(self) -> None:
        """Delete the file and let go of it. OSError when it stays."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def _lock(self) -> bool:
        """Lock the file, if nobody has and it is still there; else close it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self.descriptor).st_nlink > 0:
                return True
        except BlockingIOError:
            pass
        except BaseException:
            self.close()
            raise
        self.close()
        return False
