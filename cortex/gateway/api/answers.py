"""Errors as answers, in each dialect, and the headers of OpenAI's."""

from __future__ import annotations

import trio

from cortex.errors import CortexError
from cortex.service.http import Answer, ErrorRenderer, HttpRequest
from cortex.translate import errors
from cortex.wire import json

API_VERSION = "2020-10-01"  # OpenAI's own, which its clients show in reports

ANTHROPIC_PATHS = ("/v1/messages", "/anthropic/")
OPENAI_PATHS = ("/v1/chat/", "/v1/completions", "/v1/embeddings", "/v1/responses")


def renderer_for(request: HttpRequest) -> ErrorRenderer:
    """The words for errors of a path that no route has, or that several dialects share: those of
    its path, else those of a client that names a version of Anthropic's API."""
    if request.path.startswith(ANTHROPIC_PATHS):
        return anthropic_answer
    if "anthropic-version" in request.headers and not request.path.startswith(OPENAI_PATHS):
        return anthropic_answer
    return openai_answer


def openai_answer(error: CortexError, request_id: str) -> Answer:
    status, headers, body = errors.openai(error)
    return Answer(json.dumps(body), status, headers)


def anthropic_answer(error: CortexError, request_id: str, model: str | None = None) -> Answer:
    """*model* is the name the client sent, where it is known: some texts name it."""
    status, headers, body = errors.anthropic(error, request_id, model=model)
    return Answer(json.dumps(body), status, headers)


def openai_headers(request: HttpRequest, model: str) -> dict[str, str]:
    """What OpenAI's own answers tell beside their body. The time is that until now, when a stream
    has not begun."""
    spent = trio.current_time() - request.received_at
    told = {"openai-version": API_VERSION, "openai-processing-ms": str(max(0, round(spent * 1000)))}
    if model.isascii() and model.isprintable():
        told["openai-model"] = model
    return told
