"""`CortexError` as OpenAI's error envelope, and back.

The envelope is ``{"error": {"message", "type", "param", "code", ...extras}}``, all four keys always
there. Gateway and neuron both write it, and the gateway reads what a neuron wrote: what `parse`
returns has the class, message, param, code and extras that `render` was given.
"""

from __future__ import annotations

import math
from typing import Any

import orjson

from cortex import errors
from cortex.errors import CortexError, clip
from cortex.wire import json, sse

NEURON_OVERLOADED_STATUS = 503  # a neuron alone; a gateway says 429
MAX_RETRY_AFTER = 86_400.0  # seconds; beyond it a peer's Retry-After is taken for a mistake

_ENVELOPE = frozenset({"message", "type", "param", "code"})

_BY_CODE: dict[str, type[CortexError]] = {
    str(cls.code): cls
    for cls in (
        errors.ContextLengthExceeded,
        errors.TemplateError,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
        errors.ModelNotFound,
        errors.MethodNotAllowed,
        errors.RequestTimeout,
        errors.Conflict,
        errors.PayloadTooLarge,
        errors.UnsupportedMediaType,
        errors.ExpectationFailed,
        errors.UpgradeRequired,
        errors.HeadTooLarge,
        errors.Unprocessable,
        errors.CheckpointError,
        errors.UnsupportedModel,
        errors.UnsupportedLoad,
        errors.RateLimited,
        errors.BudgetSpent,
        errors.Overloaded,
        errors.InternalError,
        errors.UpstreamError,
        errors.Unavailable,
        errors.LoadFailed,
        errors.SourceUnavailable,
        errors.DiskFull,
        errors.DeviceOutOfMemory,
        errors.NoFeasibleNode,
    )
}
_BY_STATUS: dict[int, type[CortexError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    417: errors.ExpectationFailed,
    422: errors.Unprocessable,
    426: errors.UpgradeRequired,
    429: errors.RateLimited,
    431: errors.HeadTooLarge,
    502: errors.UpstreamError,
    503: errors.Unavailable,
    504: errors.UpstreamError,
    529: errors.Overloaded,
}


Rendered = tuple[int, dict[str, str], dict[str, Any]]  # status, headers, body


def render(error: CortexError, *, alone: bool = False) -> Rendered:
    """*error* as an answer. *alone*: a neuron answers, not a gateway."""
    overloaded = isinstance(error, errors.Overloaded)
    status = NEURON_OVERLOADED_STATUS if alone and overloaded else error.status
    return status, headers(error), body(error)


def headers(error: CortexError) -> dict[str, str]:
    """The headers that *error* wants beside its body, whatever the dialect."""
    found: dict[str, str] = {}
    if error.retry_after is not None:
        found["retry-after"] = str(max(0, math.ceil(error.retry_after)))
    if error.should_retry is not None:
        found["x-should-retry"] = "true" if error.should_retry else "false"
    if isinstance(error, errors.MethodNotAllowed):
        found["allow"] = ", ".join(error.extras.get("allow", ()))
    if isinstance(error, errors.Unauthorized):
        found["www-authenticate"] = "Bearer"
    return found


def body(error: CortexError) -> dict[str, Any]:
    """The envelope of *error*. Extras never replace the four keys."""
    extras = {key: value for key, value in error.extras.items() if key not in _ENVELOPE}
    told = {"message": error.message, "type": error.type, "param": error.param}
    return {"error": {**told, "code": error.error_code, **extras}}


def frame(error: CortexError) -> bytes:
    """*error* within a stream whose status is already sent."""
    return sse.data_frame(json.dumps(body(error)))


def parse(status: int | None, content: Any, retry_after: str | None = None) -> CortexError:
    """The error that a peer answered with: never raises, whatever the peer wrote.

    *content* is the body, as bytes or already parsed; *status* is None for an error within a
    stream; *retry_after* is the header. Envelopes of other servers are understood as far as their
    status and message go.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        content = _loads(bytes(content))
    told = _error_object(content)
    code, param = told.get("code"), told.get("param")
    code = code if isinstance(code, str) else None
    cls = _class_of(status, code, told)
    extras = {key: value for key, value in told.items() if key not in _ENVELOPE}
    message = told.get("message")
    if not isinstance(message, str) or not message:
        message = "the upstream server answered" + (f" status {status}" if status else " an error")
    return cls(
        message,
        param=param if isinstance(param, str) else None,
        code=code,
        retry_after=_seconds(retry_after),
        extras=extras,
    )


def _loads(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return {"message": clip(content[:1000].decode("utf-8", "replace").strip(), 300)}


def _error_object(content: Any) -> dict[str, Any]:
    """The object with the message, in the envelopes that inference servers use."""
    if isinstance(content, str):
        return {"message": clip(content, 300)}
    if not isinstance(content, dict):
        return {}
    inner = content.get("error")
    if isinstance(inner, dict):
        return inner
    if isinstance(inner, str):
        return {"message": clip(inner, 300)}
    if isinstance(content.get("message"), str):
        return {key: content[key] for key in _ENVELOPE if key in content}
    if "detail" in content:
        return {"message": clip(content["detail"], 300)}
    return {}


def _class_of(status: int | None, code: str | None, told: dict[str, Any]) -> type[CortexError]:
    cls = _BY_CODE.get(code) if code is not None else None
    if cls is errors.Unavailable and "loading" in told:
        return errors.ModelLoading
    if cls is not None:
        return cls
    if status is None:
        bad = told.get("type") == "invalid_request_error"
        return errors.BadRequest if bad else errors.UpstreamError
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return errors.BadRequest if 400 <= status < 500 else errors.InternalError


def _seconds(value: str | None) -> float | None:
    """A Retry-After in seconds; HTTP dates and nonsense count as none."""
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds <= MAX_RETRY_AFTER else None
