"""How an event becomes a line: text for people, JSON for machines.

Values are made printable, so that no client can forge a line, a field or a terminal sequence.
"""

from __future__ import annotations

import contextvars
import logging
import re
import time
from typing import Any

import orjson

ROOT = "cortex"
FIELDS = "cortex_fields"
FORMATS = ("text", "json")
MAX_VALUE = 500  # characters of one value
MAX_TRACEBACK = 16_000  # likewise: journald cuts a line at 48 KiB

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_NUMBERS = frozenset({int, float, bool, type(None)})
_PLAIN = re.compile(r"[!#-~]+")  # ASCII that needs no quotes
_BITS = 1 << 63  # what a JSON integer of orjson's may have


def _clipped(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _printable(value: Any) -> str:
    if type(value) in _NUMBERS:
        return str(value)
    text = _clipped(value)
    if _PLAIN.fullmatch(text) or (
        text.isprintable() and " " not in text and '"' not in text and text
    ):
        return text
    # The backslash first: one before a quote would else have it end the value.
    escaped = _escaped(text.replace("\\", "\\\\"))
    return '"' + escaped.replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LineFormatter(logging.Formatter):
    """``time level area event key=value ...``

    Remembers what a second looks like: a busy gateway writes hundreds of lines in one.
    """

    _second = -1
    _shown = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        area = record.name.removeprefix(f"{ROOT}.")
        fields = getattr(record, FIELDS, None) or {}
        message = _escaped(" ".join(record.getMessage().split()))
        level = record.levelname.lower()
        parts = [f"{self._shown}.{int(record.msecs):03d}Z {level} {area} {message}"]
        parts += [f"{key}={_printable(value)}" for key, value in fields.items()]
        current = request_id.get()
        if current is not None and "request" not in fields:
            parts.append(f"request={_printable(current)}")
        line = " ".join(parts)
        if record.exc_info:
            # Indented: no event begins like that, whatever the exception says.
            traceback = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
            line += "".join(f"\n  {_escaped(each)}" for each in traceback.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One object: ``time`` (Unix seconds), ``level``, ``area``, ``event``, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "area": record.name.removeprefix(f"{ROOT}."),
            "event": record.getMessage(),
        }
        for key, value in (getattr(record, FIELDS, None) or {}).items():
            entry.setdefault(key, _json_value(value))
        current = request_id.get()
        if current is not None:
            entry.setdefault("request", current)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        try:
            return orjson.dumps(entry).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair
            return orjson.dumps({key: _whole(value) for key, value in entry.items()}).decode()


def _json_value(value: Any) -> Any:
    if type(value) in _NUMBERS and not (type(value) is int and abs(value) >= _BITS):
        return value
    return _clipped(value)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def formatter_of(form: str) -> logging.Formatter:
    """The formatter called *form*, one of `FORMATS`."""
    return JsonFormatter() if form == "json" else LineFormatter()
