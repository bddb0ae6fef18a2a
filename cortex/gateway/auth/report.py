"""What was used, out of the database: sums over any of day, key and model."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from cortex.gateway.auth.usage import NO_KEY

_ANONYMOUS = "anonymous"
_COLUMNS = {
    "day": "usage.day",
    # A key's name may be given again after it was revoked: then the id tells them apart.
    "key": f"CASE usage.key WHEN '{NO_KEY}' THEN '{_ANONYMOUS}' ELSE "
    "COALESCE(keys.name || CASE WHEN keys.revoked IS NULL THEN '' ELSE ' (' || keys.id || ')' END, "
    "usage.key) END",
    "model": "usage.model",
}
_SUMS = ("requests", "errors", "prompt", "cached", "completion")
NAMES = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")


def usage(
    connection: sqlite3.Connection,
    by: Sequence[str],
    *,
    key: str | None = None,
    model: str | None = None,
    since: str | None = None,
) -> list[dict[str, Any]]:
    """A row for each *by* ("day", "key", "model"), in that order, with the sums of `NAMES`.

    *key* is a name, an id or "anonymous"; *since* a day, counted in. Days are UTC.
    """
    wanted, values = ["1"], []
    if key == _ANONYMOUS:
        wanted.append(f"usage.key = '{NO_KEY}'")
    elif key is not None:
        wanted.append("(keys.name = ? OR usage.key = ?)")
        values += [key, key]
    if model is not None:
        wanted.append("usage.model = ?")
        values.append(model)
    if since is not None:
        wanted.append("usage.day >= ?")
        values.append(since)
    groups = [_COLUMNS[column] for column in by]
    sums = [f"SUM(usage.{name})" for name in _SUMS]
    places = ", ".join(str(place + 1) for place in range(len(groups)))
    rows = connection.execute(
        f"SELECT {', '.join((*groups, *sums))} FROM usage LEFT JOIN keys ON keys.id = usage.key "
        f"WHERE {' AND '.join(wanted)} GROUP BY {places} ORDER BY {places}",
        values,
    )
    return [dict(zip((*by, *NAMES), row, strict=True)) for row in rows]
