"""Errors in each dialect's words (`design.md` 7): OpenAI's envelope, Responses' and Anthropic's."""

from __future__ import annotations

from typing import Any

from cortex import errors
from cortex.errors import CortexError, clip
from cortex.wire import errors as envelope
from cortex.wire import json, sse

Rendered = envelope.Rendered

OVERLOADED = 529  # Anthropic's own status: busy now, try again

# Most special first: the first class that fits decides.
_ANTHROPIC: tuple[tuple[type[CortexError], int, str], ...] = (
    (errors.Unauthorized, 401, "authentication_error"),
    (errors.Forbidden, 403, "permission_error"),
    (errors.NotFound, 404, "not_found_error"),
    (errors.Conflict, 409, "conflict_error"),
    (errors.PayloadTooLarge, 413, "request_too_large"),
    (errors.UnsupportedMediaType, 400, "invalid_request_error"),
    (errors.RateLimited, 429, "rate_limit_error"),
    (errors.Overloaded, OVERLOADED, "overloaded_error"),
    (errors.Unavailable, OVERLOADED, "overloaded_error"),
    (errors.UpstreamError, 500, "api_error"),
)
# Codes that Anthropic's clients look for in `details.error_code`.
_DETAILED = frozenset(
    {
        "tool_name_conflict",
        "image_dimensions_too_large",
        "request_body_encoding_unsupported",
        "request_body_encoding_invalid",
        "request_body_too_large_after_decoding",
    }
)


def openai(error: CortexError) -> Rendered:
    """Status, headers and body for OpenAI's dialects, as a gateway answers."""
    return envelope.render(error)


def responses_error(error: CortexError) -> dict[str, Any]:
    """The ``error`` of a response that failed, with the codes by which clients decide: Codex
    compacts its prompt, waits as long as the message says, or gives up."""
    message = error.message
    if isinstance(error, errors.ContextLengthExceeded):
        code = "context_length_exceeded"
    elif error.error_code == "insufficient_quota":
        code = "insufficient_quota"
    elif isinstance(error, errors.RateLimited | errors.Overloaded):
        code = "rate_limit_exceeded"
        if error.retry_after is not None:
            message = f"{message}; try again in {error.retry_after:g}s"
    else:
        code = "invalid_prompt" if error.status < 500 else "server_error"
    return {"code": code, "message": message}


def anthropic(error: CortexError, request_id: str, *, model: str | None = None) -> Rendered:
    """Status, headers and body for Anthropic's dialect. *model* is the name asked for."""
    status, kind = _status_and_type(error)
    told: dict[str, Any] = {"type": kind, "message": anthropic_message(error, model=model)}
    if error.error_code in _DETAILED:
        told["details"] = {"error_code": error.error_code}
    body = {"type": "error", "error": told, "request_id": request_id}
    return status, {"request-id": request_id, **envelope.headers(error)}, body


def anthropic_status(error: CortexError) -> int:
    """The HTTP status of `anthropic`."""
    return _status_and_type(error)[0]


def anthropic_frame(error: CortexError, request_id: str, *, model: str | None = None) -> bytes:
    """*error* within an Anthropic stream; nothing may follow it."""
    _, _, body = anthropic(error, request_id, model=model)
    return sse.event_frame("error", json.dumps(body))


def anthropic_message(error: CortexError, *, model: str | None = None) -> str:
    """The text for *error*: verbatim where clients match on it (`reference/api.md` 3.8)."""
    if isinstance(error, errors.ContextLengthExceeded):
        return _too_long(error, model)
    if isinstance(error, errors.ModelNotFound) and model is not None:
        return f"model: {clip(model)} ({error.message})"  # the message lists near names
    return error.message


def _status_and_type(error: CortexError) -> tuple[int, str]:
    for cls, status, kind in _ANTHROPIC:
        if isinstance(error, cls):
            return status, kind
    return error.status, "invalid_request_error" if error.status < 500 else "api_error"


def _too_long(error: errors.ContextLengthExceeded, model: str | None) -> str:
    """The text by which a client compacts its prompt or resizes its ``max_tokens``."""
    prompt, limit, context = (
        error.extras.get(key) for key in ("prompt_tokens", "max_tokens", "context")
    )
    if not isinstance(prompt, int) or not isinstance(context, int):
        return error.message
    if prompt >= context:  # one token at least has to be generated
        maximum = context if prompt > context else context - 1
        return f"prompt is too long: {prompt} tokens > {maximum} maximum"
    if not isinstance(limit, int):
        return error.message
    if limit > context:
        name = clip(model) if model is not None else "this model"
        return (
            f"max_tokens: {limit} > {context}, which is the maximum allowed number of output "
            f"tokens for {name}"
        )
    return f"input length and `max_tokens` exceed context limit: {prompt} + {limit} > {context}"
