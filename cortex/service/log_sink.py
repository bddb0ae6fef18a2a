"""Where log lines go: a descriptor that may not take them.

A pipe that nobody reads, a journal that hangs, a terminal that is held: a plain write to one of
them returns when it pleases its reader, and with it every stream of this process would stand still.
Here a reader that is slow is waited for, shortly and seldom; what it does not take by then is
dropped and counted, and said once lines pass again. One that is gone harms nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable

from cortex.service.log_format import FIELDS, ROOT

# A reader that is merely busy takes a full pipe's content within some milliseconds.
PATIENCE_SECONDS = 0.05
# What waiting may take of all time, whether a reader drips or takes nothing; after a whole
# `PATIENCE_SECONDS` it is a second until there are as many again.
WAITING_SHARE = 0.05
# A descriptor that blocks takes as much as this, if anything, without blocking.
SLICE = select.PIPE_BUF
# syslog's, in the form that systemd documents for the streams of services.
PRIORITIES = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"))


class Sink:
    """Writes lines to *descriptor*, all of them or none. None takes nothing."""

    def __init__(self, descriptor: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0  # lines
        self._clock = clock
        self._patience = PATIENCE_SECONDS  # that is left
        self._counted_at = clock()
        self._torn = False  # the last line was cut short
        self._descriptor = descriptor
        self._own: int | None = None  # a descriptor that is ours to close
        self._socket: socket.socket | None = None
        self._polled: select.poll | None = None
        if descriptor is not None:
            self._open(descriptor)

    def _open(self, descriptor: int) -> None:
        """Make writes return at once without changing what other processes share with us."""
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            self._descriptor = None
            return
        if stat.S_ISREG(mode):
            return
        self._polled = select.poll()
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or os.isatty(descriptor):
            # A description of our own: the mode of the one that we were given is its other users'.
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            # Without /proc, or where it is another user's, it is polled before each write alone.
            with contextlib.suppress(OSError):
                self._descriptor = self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
        assert self._descriptor is not None
        self._polled.register(self._descriptor, select.POLLOUT)

    def write(self, line: bytes) -> bool:
        """Write *line*, which ends in a newline; whether it could be."""
        rest = memoryview(b"\n" + line if self._torn else line)
        began, size = self._clock(), len(rest)
        earned = (began - self._counted_at) * WAITING_SHARE
        patience = min(PATIENCE_SECONDS, self._patience + earned)
        try:
            while len(rest) and self._writable(began + patience):
                taken = self._put(rest[:SLICE])
                rest = rest[taken:]
                if not taken and self._clock() >= began + patience:
                    break
        except OSError:  # nobody is there any more, or a disk is full
            return self._drop(torn=len(rest) < size)
        self._counted_at = self._clock()
        self._patience = 0.0 if len(rest) else max(0.0, patience - (self._counted_at - began))
        if len(rest):
            return self._drop(torn=len(rest) < size)
        self._torn = False
        return True

    def close(self) -> None:
        """Let go of what was opened here. Nothing is taken any more."""
        self._descriptor = None
        if self._socket is not None:
            self._socket.close()
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _writable(self, until: float) -> bool:
        if self._descriptor is None:
            return False
        if self._polled is None:
            return True
        left = max(0.0, until - self._clock())
        return bool(self._polled.poll(left * 1000))

    def _put(self, data: memoryview) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            assert self._descriptor is not None
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0

    def _drop(self, *, torn: bool) -> bool:
        self._torn = self._torn or torn
        self.dropped += 1
        return False


class LineHandler(logging.Handler):
    """Formats records and writes them to *sink*; with *priorities* for the journal."""

    def __init__(self, sink: Sink, *, priorities: bool = False) -> None:
        super().__init__()
        self._sink = sink
        self._priorities = priorities
        self._told = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._sink.write(self._line(record)) and self._sink.dropped > self._told:
            self._told = self._sink.dropped
            fields = {FIELDS: {"dropped": self._told}}
            about = {"name": f"{ROOT}.service.logs", "levelno": logging.WARNING} | fields
            told = {"msg": "lines of this log were dropped", "levelname": "WARNING"}
            self._sink.write(
                self._line(logging.makeLogRecord({"created": record.created} | about | told))
            )

    def close(self) -> None:
        self._sink.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as exc:  # a value that cannot be shown is no reason to fail
            text = f"error service.logs an event cannot be shown error={type(exc).__name__}"
        if self._priorities:
            mark = next((m for least, m in PRIORITIES if record.levelno >= least), "<7>")
            text = "\n".join(mark + each for each in text.split("\n"))
        return text.encode("utf-8", "backslashreplace") + b"\n"
