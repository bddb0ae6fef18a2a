"""Errors as answers, in each dialect."""

from __future__ import annotations

from cortex.errors import CortexError
from cortex.service.http import Answer
from cortex.translate import errors
from cortex.wire import json


def openai_answer(error: CortexError, request_id: str) -> Answer:
    status, headers, body = errors.openai(error)
    return Answer(json.dumps(body), status, headers)


def anthropic_answer(error: CortexError, request_id: str, model: str | None = None) -> Answer:
    """*model* is the name the client sent, where it is known: some texts name it."""
    status, headers, body = errors.anthropic(error, request_id, model=model)
    return Answer(json.dumps(body), status, headers)
