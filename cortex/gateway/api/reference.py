"""The gateway's OpenAPI document: an operation for each of its routes."""

from __future__ import annotations

from typing import Any

import attrs

from cortex import __version__, errors
from cortex.gateway.api.fleet import FleetLoad, FleetModel
from cortex.gateway.api.fleet_answers import FLEET_ANSWERS
from cortex.gateway.api.pulls import CancelOrder, PullOrder
from cortex.gateway.auth.scopes import scope_of
from cortex.translate.errors import anthropic_status
from cortex.wire import anthropic, embeddings, json, neuron, openai, responses
from cortex.wire.reference.anthropic_answers import ANTHROPIC_ANSWERS
from cortex.wire.reference.document import ASKING, Document, Key, Operation
from cortex.wire.reference.openai_answers import MODEL_ANSWERS, OPENAI_ANSWERS
from cortex.wire.reference.requests import request_components
from cortex.wire.reference.responses_answers import RESPONSES_ANSWERS
from cortex.wire.reference.schema import INTEGER, STRING, described, one_of, record, ref

_DEMO = "cortex/demo"
_MESSAGES = [{"role": "user", "content": "Which roles does cortex have?"}]
_STATUS = record({"status": STRING})
_VERSION = described(STRING, "Echoed; see `strict_anthropic_version`.")
_COUNTING = (errors.Forbidden, errors.ModelNotFound, errors.UpstreamError, errors.Unavailable)
_ORDERING = (errors.ModelNotFound, errors.Conflict, errors.UpstreamError, errors.Unavailable)

_OPENAI: dict[Key, Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        summary="Answer a chat, whole or as a stream.",
        tag="OpenAI",
        body=openai.ChatRequest,
        answer=ref("ChatCompletion"),
        events=ref("ChatCompletionChunk"),
        refusals=ASKING,
        example={"model": _DEMO, "messages": _MESSAGES},
    ),
    ("POST", "/v1/completions"): Operation(
        summary="Continue a text, whole or as a stream.",
        tag="OpenAI",
        body=openai.CompletionRequest,
        answer=ref("Completion"),
        events=ref("Completion"),
        refusals=ASKING,
        example={"model": _DEMO, "prompt": "Cortex is", "max_tokens": 16},
    ),
    ("POST", "/v1/embeddings"): Operation(
        summary="Give the vectors of texts.",
        tag="OpenAI",
        body=embeddings.EmbeddingRequest,
        answer=ref("EmbeddingList"),
        refusals=ASKING,
        example={"model": _DEMO, "input": ["one text", "another"]},
    ),
    ("POST", "/tokenize"): Operation(
        summary="Count the tokens of a prompt, with the model's own template.",
        tag="OpenAI",
        body=openai.TokenizeRequest,
        answer=ref("TokenCount"),
        refusals=(*_COUNTING, errors.TemplateError),
        example={"model": _DEMO, "messages": _MESSAGES},
    ),
    ("POST", "/v1/responses"): Operation(
        summary="Answer as OpenAI's Responses API, whole or as a stream; nothing is stored.",
        tag="OpenAI",
        body=responses.ResponsesRequest,
        answer=ref("Response"),
        events=ref("ResponsesEvent"),
        refusals=ASKING,
        example={"model": _DEMO, "input": "Which roles does cortex have?"},
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        summary="Count the tokens of a response's prompt.",
        tag="OpenAI",
        body=responses.CountRequest,
        answer=ref("ResponsesCount"),
        refusals=(*_COUNTING, errors.TemplateError),
        example={"model": _DEMO, "input": "Which roles does cortex have?"},
    ),
    ("POST", "/v1/responses/compact"): Operation(
        summary="Refused: ask the model for a summary instead.",
        tag="OpenAI",
        refusals=(errors.NotFound,),
    ),
}
_STORED = {
    ("GET", "/v1/responses/{id}"): "a stored response",
    ("DELETE", "/v1/responses/{id}"): "the removal of a stored response",
    ("POST", "/v1/responses/{id}/cancel"): "the end of a response in the background",
    ("GET", "/v1/responses/{id}/input_items"): "the input of a stored response",
}
_RESPONSES = {
    key: Operation(
        summary=f"Refused ({what}): nothing is stored.",
        tag="OpenAI",
        refusals=(errors.NotFound,),
    )
    for key, what in _STORED.items()
}


def _anthropic(prefix: str) -> dict[Key, Operation]:
    words: dict[str, Any] = {
        "tag": "Anthropic",
        "error": ref("AnthropicError"),
        "status_of": anthropic_status,
    }
    under = f", under {prefix}" if prefix else ""
    headers = {"anthropic-version": _VERSION}
    return {
        ("POST", f"{prefix}/v1/messages"): Operation(
            summary=f"Answer messages, whole or as a stream{under}.",
            body=anthropic.MessagesRequest,
            answer=ref("AnthropicAnswer"),
            events=ref("AnthropicEvent"),
            refusals=ASKING,
            headers=headers,
            example={"model": _DEMO, "max_tokens": 64, "messages": _MESSAGES},
            **words,
        ),
        ("POST", f"{prefix}/v1/messages/count_tokens"): Operation(
            summary=f"Count the tokens of a prompt{under}.",
            body=anthropic.CountRequest,
            answer=ref("AnthropicCount"),
            refusals=(*_COUNTING, errors.TemplateError),
            headers=headers,
            example={"model": _DEMO, "messages": _MESSAGES},
            **words,
        ),
    }


_PAGE = {
    "limit": described({**INTEGER, "minimum": 1}, "At most so many."),
    "after_id": described(STRING, "Those after this one."),
    "before_id": described(STRING, "Those before this one."),
}
_MODELS = Operation(
    summary="List the models that the key may use, with limits, state and place.",
    tag="Models",
    answer=ref("ModelList"),
    query=_PAGE,
    refusals=(errors.BadRequest,),
)
_MODEL_ROUTES: dict[Key, Operation] = {
    ("GET", "/v1/models"): _MODELS,
    ("GET", "/v1/models/"): _MODELS,
    ("GET", "/v1/models/{id:path}"): Operation(
        summary="Tell of one model.",
        tag="Models",
        answer=ref("ListedModel"),
        refusals=(errors.ModelNotFound,),
    ),
}

_HEALTH = Operation(
    summary="Say how the fleet is: always 200, its body is true.",
    tag="State",
    answer=ref("FleetHealth"),
)
_STATE_ROUTES: dict[Key, Operation] = {
    ("GET", "/"): _HEALTH,
    ("GET", "/health"): _HEALTH,
    ("GET", "/livez"): Operation(
        summary="Say that the process lives.", tag="State", answer=_STATUS
    ),
    ("GET", "/readyz"): Operation(
        summary="Say whether a request could be answered now.",
        tag="State",
        answer=ref("GatewayReadiness"),
        also={503: ref("GatewayReadiness")},
    ),
    ("GET", "/version"): Operation(
        summary="Say which version runs.", tag="State", answer=ref("GatewayVersion")
    ),
    ("GET", "/openapi.json"): Operation(
        summary="This document.", tag="State", answer={"type": "object"}
    ),
}


def _order(summary: str, answer: str, body: type = FleetModel) -> Operation:
    return Operation(
        summary=summary,
        tag="Fleet",
        body=body,
        answer=ref(answer),
        refusals=_ORDERING,
        example={"model": _DEMO},
    )


_FLEET_ROUTES: dict[Key, Operation] = {
    ("GET", "/fleet"): Operation(
        summary="Tell of nodes, devices, models, pins and who waits.",
        tag="Fleet",
        answer=ref("Fleet"),
    ),
    ("GET", "/fleet/events"): Operation(
        summary="Follow the fleet: a snapshot, then what happens.",
        tag="Fleet",
        events=ref("FleetEvent"),
        headers={"last-event-id": described(STRING, "Go on after this event.")},
    ),
    ("POST", "/fleet/reload"): Operation(
        summary="Read the configuration again and put it in force.",
        tag="Fleet",
        answer=ref("ReloadAnswer"),
        query={"dry_run": described(one_of("true", "false"), "Only say what would change.")},
        refusals=(errors.BadRequest,),
    ),
    ("POST", "/fleet/models/load"): Operation(
        summary="Load a model, and answer when it is there.",
        tag="Fleet",
        body=FleetLoad,
        answer=ref("LoadedAnswer"),
        also={202: _STATUS},
        refusals=(*_ORDERING, errors.LoadFailed, errors.NoFeasibleNode),
        example={"model": _DEMO},
    ),
    ("GET", "/fleet/pulls"): Operation(
        summary="Tell how far pulls are.", tag="Fleet", answer=ref("FleetPulls")
    ),
    ("POST", "/fleet/models/pull"): Operation(
        summary="Have neurons fetch a model's files; `GET /fleet/pulls` tells how far they are.",
        tag="Fleet",
        body=PullOrder,
        also={202: ref("FleetPulls")},
        refusals=_ORDERING,
        example={"model": _DEMO},
    ),
    ("POST", "/fleet/models/pull/cancel"): attrs.evolve(
        _order("Stop pulls.", "CancelledAnswer"), body=CancelOrder
    ),
    ("POST", "/fleet/models/unload"): _order("Take a model away.", "UnloadedAnswer"),
    ("POST", "/fleet/models/pin"): _order("Keep a model where it is.", "PinnedAnswer"),
    ("POST", "/fleet/models/unpin"): _order("Take back pins.", "UnpinnedAnswer"),
}

OPERATIONS: dict[Key, Operation] = {
    **_OPENAI,
    **_RESPONSES,
    **_anthropic(""),
    **_anthropic("/anthropic"),
    **_MODEL_ROUTES,
    **_STATE_ROUTES,
    **_FLEET_ROUTES,
}
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
DESCRIPTION = (
    "One API over a fleet, in OpenAI's and Anthropic's dialects. Fields that are not named here "
    "are let through or ignored, and cause no error."
)


def document() -> Document:
    """The gateway's document."""
    components = request_components()
    for answers in (OPENAI_ANSWERS, ANTHROPIC_ANSWERS, RESPONSES_ANSWERS, MODEL_ANSWERS):
        components.add(answers)
    components.add(FLEET_ANSWERS)
    components.of(neuron.Pull)
    return Document(
        title="cortex gateway",
        description=DESCRIPTION,
        version=__version__,
        operations=OPERATIONS,
        components=components,
        scope_of=scope_of,
        keys=KEYS,
    )


def encoded() -> bytes:
    """The same, as JSON."""
    return json.dumps(document().build())
