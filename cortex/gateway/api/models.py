"""The models as clients of both dialects list them."""

from __future__ import annotations

from cortex.errors import ModelNotFound, clip
from cortex.gateway import models_page, models_view
from cortex.gateway.api.answers import anthropic_answer
from cortex.gateway.auth.caller import ANONYMOUS
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.service.http import Answer, HttpRequest
from cortex.wire import json


def list_models(names: ModelNames, fleet: Fleet, request: HttpRequest) -> Answer:
    """``GET /v1/models``: what the caller may use, in the form of its dialect."""
    body = models_page.listing(
        models_view.entries(names, fleet),
        request.query,
        _allowed(request),
        anthropic=_is_anthropic(request),
    )
    return Answer(json.dumps(body))


def one_model(names: ModelNames, fleet: Fleet, request: HttpRequest) -> Answer:
    """``GET /v1/models/{id}``, where the id may have slashes, percent-encoded or not."""
    name = request.params["id"]
    entry = models_view.model(names, fleet, name)
    if entry is None or not _allowed(request)(names.plain(name), names.target(name)):
        error = ModelNotFound(f"the model '{clip(name)}' does not exist", param="model")
        if _is_anthropic(request):
            return anthropic_answer(error, request.request_id, name)
        raise error
    if _is_anthropic(request):
        entry = models_page.for_anthropic(entry)
    return Answer(json.dumps(entry))


def _is_anthropic(request: HttpRequest) -> bool:
    return "anthropic-version" in request.headers


def _allowed(request: HttpRequest) -> models_page.Allowed:
    caller = ANONYMOUS if request.caller is None else request.caller
    allowed: models_page.Allowed = caller.may_use
    return allowed
