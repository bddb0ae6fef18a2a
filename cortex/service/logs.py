"""Structured logs: one event a line, on stderr.

A line tells time, level, area, event and fields; the id of the request that is being served comes
from a context variable, which trio hands on to the tasks a request starts. Writing one never raises
and never blocks for long (`log_sink`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from cortex.service.log_format import FIELDS, ROOT, formatter_of, request_id
from cortex.service.log_sink import LineHandler, Sink

__all__ = ["Log", "cause_chain", "configure", "dropped", "get", "request_id"]

_SINKS: list[Sink] = []  # of this process, for the count of what they dropped


class Log:
    """Writes events of one area (``gateway.router``)."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, exc: BaseException | None = None, **fields: Any) -> None:
        """Write *event*; *exc* adds its cause chain, and its traceback at debug level."""
        if exc is not None:
            fields["cause"] = cause_chain(exc)
        self._write(logging.ERROR, event, fields)
        if exc is not None and self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("traceback", exc_info=exc, extra={FIELDS: {}})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        logger = self._logger
        if logger.isEnabledFor(level):
            logger.handle(_record(logger.name, level, event, fields))


# What every record has. Making one anew walks the stack for a file and a line, and asks for the
# thread and the process, none of which a line shows.
_COMMON = vars(logging.makeLogRecord({}))


def _record(name: str, level: int, event: str, fields: dict[str, Any]) -> logging.LogRecord:
    now = time.time()
    record = logging.LogRecord.__new__(logging.LogRecord)
    vars(record).update(
        _COMMON,
        name=name,
        msg=event,
        levelno=level,
        levelname=logging.getLevelName(level),
        created=now,
        msecs=now % 1 * 1000,
        **{FIELDS: fields},
    )
    return record


def get(area: str) -> Log:
    """The log of *area*."""
    return Log(logging.getLogger(f"{ROOT}.{area}"))


def cause_chain(exc: BaseException) -> str:
    """*exc* and what caused it, newest first; groups show their leaves."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen and len(parts) < 8:
        seen.add(id(current))
        if isinstance(current, BaseExceptionGroup):
            parts.append("; ".join(cause_chain(inner) for inner in current.exceptions[:4]))
            break
        parts.append(
            f"{type(current).__name__}: {current}" if str(current) else type(current).__name__
        )
        current = current.__cause__ or current.__context__
    return " <- ".join(parts)


def journal_takes(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to *descriptor* goes to systemd's journal: it says so by the device
    and inode in ``JOURNAL_STREAM``."""
    device, colon, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (colon and device.isdigit() and inode.isdigit()):
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


def configure(
    level: str = "info",
    form: str = "text",
    stream: TextIO | None = None,
    *,
    areas: Mapping[str, str] = {},
    environ: Mapping[str, str] = {},
) -> None:
    """Send events from *level* on, or from what *areas* says of an area and those below it, to
    *stream*, which is stderr by default.

    *form* is ``text``, ``json``, or ``auto``: JSON where the journal of *environ* reads it. There
    each line begins with its priority, which the journal takes off.
    """
    handler = _handler(sys.stderr if stream is None else stream, form, environ)
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    for name, known in list(logging.root.manager.loggerDict.items()):
        if name.startswith(f"{ROOT}.") and isinstance(known, logging.Logger):
            known.setLevel(logging.NOTSET)  # as an earlier call may have left it
    for area, its_level in areas.items():
        logging.getLogger(f"{ROOT}.{area}").setLevel(its_level.upper())
    server = logging.getLogger("hypercorn.error")
    server.handlers[:] = [handler]
    server.propagate = False
    server.setLevel(logging.WARNING)


def _handler(stream: TextIO | None, form: str, environ: Mapping[str, str]) -> logging.Handler:
    descriptor: int | None
    try:
        descriptor = None if stream is None else stream.fileno()
    except (OSError, ValueError):  # in memory, or closed
        plain = logging.StreamHandler(stream)
        plain.setFormatter(formatter_of(form))
        return plain
    journal = descriptor is not None and journal_takes(descriptor, environ)
    if form == "auto":
        form = "json" if journal else "text"
    sink = Sink(descriptor)
    _SINKS[:] = [sink]
    handler = LineHandler(sink, priorities=journal)
    handler.setFormatter(formatter_of(form))
    return handler


def dropped() -> int:
    """How many lines this process could not write so far."""
    return sum(sink.dropped for sink in _SINKS)
