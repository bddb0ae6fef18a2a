"""Structured logs: one event a line, on stderr.

A line is ``time level area event key=value ...``; the id of the request that is being served comes
from a context variable, which trio hands on to the tasks a request starts. Values are made
printable, so that no client can forge a line or a terminal sequence.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import time
from typing import Any, TextIO

import orjson

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_ROOT = "cortex"
_FIELDS = "cortex_fields"
MAX_VALUE = 500  # characters of one value
_NUMBERS = frozenset({int, float, bool, type(None)})
_PLAIN = re.compile(r"[!#-~]+")  # ASCII that needs no quotes


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
            self._logger.debug("traceback", exc_info=exc, extra={_FIELDS: {}})

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
        **{_FIELDS: fields},
    )
    return record


def get(area: str) -> Log:
    """The log of *area*."""
    return Log(logging.getLogger(f"{_ROOT}.{area}"))


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


def _printable(value: Any) -> str:
    if type(value) in _NUMBERS:
        return str(value)
    text = str(value)
    if len(text) > MAX_VALUE:
        text = text[: MAX_VALUE - 1] + "…"
    if _PLAIN.fullmatch(text) or (
        text.isprintable() and " " not in text and '"' not in text and text
    ):
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return '"' + escaped.replace('"', '\\"') + '"'


class _LineFormatter(logging.Formatter):
    """Remembers what a second looks like: a busy gateway writes hundreds of lines in one."""

    _second = -1
    _shown = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        area = record.name.removeprefix(f"{_ROOT}.")
        fields = getattr(record, _FIELDS, None) or {}
        message = " ".join(record.getMessage().split())
        level = record.levelname.lower()
        parts = [f"{self._shown}.{int(record.msecs):03d}Z {level} {area} {message}"]
        parts += [f"{key}={_printable(value)}" for key, value in fields.items()]
        current = request_id.get()
        if current is not None and "request" not in fields:
            parts.append(f"request={_printable(current)}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, _FIELDS, None) or {})
        current = request_id.get()
        if current is not None:
            fields.setdefault("request", current)
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "area": record.name.removeprefix(f"{_ROOT}."),
            "event": record.getMessage(),
            **{key: value if _plain(value) else str(value) for key, value in fields.items()},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def configure(level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Send every area's events from *level* on to *stream*, which is stderr by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if json else _LineFormatter())
    root = logging.getLogger(_ROOT)
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    server = logging.getLogger("hypercorn.error")
    server.handlers[:] = [handler]
    server.propagate = False
    server.setLevel(logging.WARNING)
