"""JSON in and out, with what orjson lets through checked.

orjson already refuses NaN, infinities, numbers that overflow a double, invalid UTF-8, lone
surrogates, raw control characters, a byte order mark and trailing bytes. Left to check are the
nesting depth and the number of values, since both cost time out of proportion to the body's size.
Duplicate keys: the last one wins, here and, because the parsed body is what is sent on, everywhere.
"""

from __future__ import annotations

from typing import Any

import orjson

from cortex.errors import BadRequest

MAX_DEPTH = 128
# A body of a million keys held the event loop for 0.27 s when parsed (measured: 130,000 keys take
# 35 ms); prose has about one structural byte in fifty, so this admits prompts of tens of megabytes.
MAX_STRUCTURAL_BYTES = 400_000
COUNTED_BYTES = 4096

_OPTIONS = orjson.OPT_NON_STR_KEYS


def loads(body: bytes | bytearray | memoryview) -> Any:
    """Parse *body*, or raise `BadRequest` saying what is wrong with it."""
    data = bytes(body)
    if not data.strip():
        raise BadRequest("the request body is empty; a JSON object is expected", code="empty_body")
    # A short body cannot hold as many, and counting takes as long as parsing.
    if len(data) > MAX_STRUCTURAL_BYTES and (
        sum(map(data.count, (b"{", b"[", b",", b":"))) > MAX_STRUCTURAL_BYTES
    ):
        raise BadRequest("the request body holds too many JSON values", code="invalid_json")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"the request body is not valid JSON: {exc}", code="invalid_json") from exc
    if _may_be_deep(data) and _too_deep(value):
        raise BadRequest(
            f"the request body is nested more than {MAX_DEPTH} levels deep", code="invalid_json"
        )
    return value


def load_object(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Parse *body*, which must be a JSON object."""
    value = loads(body)
    if not isinstance(value, dict):
        raise BadRequest("the request body must be a JSON object", code="invalid_json")
    return value


def dumps(value: Any) -> bytes:
    """Compact JSON. *value* must be free of NaN and lone surrogates: both are our bugs."""
    return orjson.dumps(value, option=_OPTIONS)


def raw(data: bytes) -> Any:
    """*data*, which is JSON already, as a value within what is given to `dumps`."""
    return orjson.Fragment(data)


def _may_be_deep(data: bytes) -> bool:
    """Whether it is worth looking. Of a long text a look at the values is quicker than a count."""
    if len(data) > COUNTED_BYTES:
        return True
    return data.count(b"{") + data.count(b"[") > MAX_DEPTH


def _too_deep(value: Any) -> bool:
    """Whether containers in *value* nest deeper than `MAX_DEPTH`, found level by level."""
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for item in level
            for inner in (item.values() if type(item) is dict else item)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True
