"""What requests have used: one request's entry, and sums of entries."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import attrs
import orjson

from cortex.gateway.auth.limits import day_of

CLIENT_GONE = 499
NO_KEY = ""  # the key's id where a request had none


@attrs.define
class Entry:
    """One request that has ended. Tokens are those the model's node has counted; of a stream that
    was cut short, the prompt's and at least those that were passed on (`Exchange.settle`)."""

    time: float  # Unix seconds
    key: str  # a key's id
    model: str
    node: str
    dialect: str
    code: int
    prompt: int
    cached: int  # part of the prompt
    completion: int
    ttft: float | None  # seconds to the first token
    seconds: float

    def line(self) -> bytes:
        """As it stands in a journal."""
        values = (self.time, self.key, self.model, self.node, self.dialect, self.code, self.prompt)
        rest = (self.cached, self.completion, self.ttft, self.seconds)
        return orjson.dumps((*values, *rest)) + b"\n"

    @property
    def failed(self) -> bool:
        """Whether it counts as an error: not when the client left of its own accord."""
        return self.code >= 400 and self.code != CLIENT_GONE


_NUMBER = (int, float)
_KINDS: tuple[Any, ...] = (
    _NUMBER,
    str,
    str,
    str,
    str,
    int,
    int,
    int,
    int,
    (*_NUMBER, type(None)),
    _NUMBER,
)


def parse(line: bytes) -> Entry | None:
    """The entry in *line*; None when it was cut off while it was written."""
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(values, list) or len(values) != len(_KINDS):
        return None
    if not all(isinstance(value, kind) for value, kind in zip(values, _KINDS, strict=True)):
        return None
    return Entry(*values)


@attrs.define
class Sums:
    requests: int = 0
    errors: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def add(self, entry: Entry) -> None:
        self.requests += 1
        self.errors += entry.failed
        self.prompt += entry.prompt
        self.cached += entry.cached
        self.completion += entry.completion


def summed(entries: Iterable[Entry]) -> dict[tuple[str, str, str], Sums]:
    """By key id, model and day in UTC."""
    found: dict[tuple[str, str, str], Sums] = {}
    for entry in entries:
        place = (entry.key, entry.model, day_of(entry.time))
        found.setdefault(place, Sums()).add(entry)
    return found


def tokens_since(connection: sqlite3.Connection, key: str, day: str) -> int:
    """Prompt and completion tokens of the key with this id from *day* (or a month's) on."""
    (total,) = connection.execute(
        "SELECT COALESCE(SUM(prompt + completion), 0) FROM usage WHERE key = ? AND day >= ?",
        (key, day),
    ).fetchone()
    return int(total)
