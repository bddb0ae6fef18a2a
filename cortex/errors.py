"""Every error that reaches a client, and what a client is told about it.

CortexError
├── BadRequest                  400  the request can never succeed as it stands
│   ├── ContextLengthExceeded   400  prompt (or prompt + max_tokens) beyond the model's limit
│   └── TemplateError           400  the chat template refuses these messages
├── Unauthorized                401  key missing or wrong
├── Forbidden                   403  key without the right
├── NotFound                    404  no such route or object
│   └── ModelNotFound           404  a name that nothing in catalogue or fleet answers to
├── MethodNotAllowed            405
├── RequestTimeout              408  a request's head did not arrive in time
├── Conflict                    409  the state forbids it (unloading what is loading)
├── PayloadTooLarge             413  body over the cap, also after decoding
├── UnsupportedMediaType        415  content type or encoding
├── ExpectationFailed           417  an Expect header that asks for what nobody does
├── Unprocessable               422  a load that can never work here
│   ├── CheckpointError         422  files missing, truncated, corrupt or hostile
│   ├── UnsupportedModel        422  an architecture this engine does not know
│   └── UnsupportedLoad         422  a load option this build does not support
├── UpgradeRequired             426  a WebSocket where plain HTTP is spoken
├── HeadTooLarge                431  more bytes or fields than a request's head may have
├── RateLimited                 429  the caller is over its rate
│   └── BudgetSpent             429  it has used up its budget; retrying is useless
├── Overloaded                  429  the queue is full or the wait bound has passed
├── InternalError               500  our bug
├── UpstreamError               502  a neuron refused, reset or answered garbage
└── Unavailable                 503  not now
    ├── Draining                503
    ├── ModelLoading            503  still loading when the wait bound passed
    ├── LoadFailed              503  the load failed; the cause is told
    ├── SourceUnavailable       503  a model's files cannot be reached now
    ├── DiskFull                503  no room on the disk for a model's files
    ├── DeviceOutOfMemory       503  no room now; no device fault
    ├── DeviceLost              503  the device faulted or its thread ended
    ├── NoHealthyNode           503
    └── NoFeasibleNode          503  fits nowhere in this fleet; retrying is useless

LoadCancelled is a signal, not an answer: a load was asked to stop and did.

Each class carries the HTTP status and the OpenAI ``type`` and ``code``; what a dialect makes of
them is in `translate.errors`. Messages are short, true, and carry no raw client bytes beyond
what `clip` lets through.
"""

from __future__ import annotations

from typing import Any, ClassVar

MESSAGE_LIMIT = 1000  # bytes of UTF-8 a client is told at most


def clip(value: object, limit: int = 100) -> str:
    """*value* as printable text of at most *limit* characters, for messages and logs."""
    text = str(value)
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in shown)


class CortexError(Exception):
    """An error with an answer.

    ``param`` is the JSON path at fault (``messages[2].content``); ``retry_after`` is in seconds;
    ``extras`` are further members of the error object (numbers a client may use).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = "internal_error"
    default_retry_after: ClassVar[float | None] = None
    should_retry: ClassVar[bool | None] = None  # the x-should-retry header; None leaves it out

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        extras: dict[str, Any] | None = None,
    ) -> None:
        encoded = message.encode("utf-8", "replace")
        if len(encoded) > MESSAGE_LIMIT:
            message = encoded[: MESSAGE_LIMIT - 3].decode("utf-8", "ignore") + "…"
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code if code is not None else self.code
        self.retry_after = retry_after if retry_after is not None else self.default_retry_after
        self.extras = extras or {}


class BadRequest(CortexError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(BadRequest):
    """``extras`` hold ``prompt_tokens``, ``max_tokens`` (or None) and ``context``."""

    code = "context_length_exceeded"


class TemplateError(BadRequest):
    code = "template_error"


class Unauthorized(CortexError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    should_retry = False  # Claude Code asks for minutes otherwise, and says nothing


class Forbidden(CortexError):
    status = 403
    type = "permission_error"
    code = "permission_error"


class NotFound(CortexError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(CortexError):
    """``extras["allow"]`` is the list of methods for the Allow header."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(CortexError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Conflict(CortexError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class PayloadTooLarge(CortexError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(CortexError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class ExpectationFailed(CortexError):
    status = 417
    type = "invalid_request_error"
    code = "expectation_failed"


class UpgradeRequired(CortexError):
    """Some clients try a WebSocket first, and come back over HTTP for this status alone."""

    status = 426
    type = "invalid_request_error"
    code = "upgrade_required"


class HeadTooLarge(CortexError):
    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


class Unprocessable(CortexError):
    status = 422
    type = "invalid_request_error"
    code = "unprocessable"
    should_retry = False


class CheckpointError(Unprocessable):
    code = "bad_checkpoint"


class UnsupportedModel(Unprocessable):
    code = "unsupported_model"


class UnsupportedLoad(Unprocessable):
    code = "unsupported_load"


class RateLimited(CortexError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    default_retry_after: ClassVar[float | None] = 1.0


class BudgetSpent(RateLimited):
    code = "insufficient_quota"
    default_retry_after = None
    should_retry = False


class Overloaded(CortexError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    default_retry_after = 2.0


class InternalError(CortexError):
    pass


class UpstreamError(CortexError):
    status = 502
    code = "upstream_error"
    should_retry = True


class Unavailable(CortexError):
    status = 503
    code = "service_unavailable"
    default_retry_after: ClassVar[float | None] = 5.0


class Draining(Unavailable):
    default_retry_after = 15.0


class ModelLoading(Unavailable):
    """``extras["loading"]`` is ``{node, stage, progress, eta}``."""


class LoadFailed(Unavailable):
    code = "load_failed"


class SourceUnavailable(Unavailable):
    code = "source_unavailable"
    default_retry_after = 30.0


class DiskFull(Unavailable):
    """``extras`` hold ``required_mb`` and ``free_mb`` where it was seen before it happened."""

    code = "insufficient_disk"
    default_retry_after = 60.0


class DeviceOutOfMemory(Unavailable):
    code = "insufficient_memory"


class DeviceLost(Unavailable):
    pass


class NoHealthyNode(Unavailable):
    pass


class NoFeasibleNode(Unavailable):
    code = "no_feasible_node"
    default_retry_after = None
    should_retry = False


class LoadCancelled(Exception):
    """A load was asked to stop and has let go of everything it held."""
