"""The neuron's OpenAPI document: an operation for each of its routes."""

from __future__ import annotations

from typing import Any

import attrs

from cortex import __version__, errors
from cortex.errors import CortexError
from cortex.wire import embeddings, json, neuron, openai
from cortex.wire.errors import render
from cortex.wire.reference.document import ASKING, Document, Key, Operation
from cortex.wire.reference.openai_answers import OPENAI_ANSWERS, PROOF
from cortex.wire.reference.requests import request_components
from cortex.wire.reference.schema import (
    BOOLEAN,
    INTEGER,
    STRING,
    Schema,
    array,
    described,
    one_of,
    record,
    ref,
)

_DEMO = "cortex/demo"
_MESSAGES = [{"role": "user", "content": "Which roles does cortex have?"}]
_LOADING = (
    errors.Conflict,
    errors.CheckpointError,
    errors.UnsupportedModel,
    errors.UnsupportedLoad,
    errors.LoadFailed,
    errors.SourceUnavailable,
    errors.DiskFull,
    errors.DeviceOutOfMemory,
    errors.DeviceLost,
    errors.Draining,
)
# Classes whose instances these routes tell, by their names.
_TOLD = (
    neuron.Discovery,
    neuron.Health,
    neuron.Version,
    neuron.Model,
    neuron.LoadAnswer,
    neuron.UnloadAnswer,
    neuron.RestartAnswer,
    neuron.Estimate,
    neuron.Endpoint,
    neuron.Capabilities,
    neuron.Pulls,
)


def _status(error: CortexError) -> int:
    return render(error, alone=True)[0]


def _asking(summary: str, body: type, answer: Schema, **more: Any) -> Operation:
    refusals = tuple(cls for cls in ASKING if not issubclass(cls, errors.RateLimited))
    known = Operation(
        summary=summary,
        tag="Inference",
        body=body,
        answer=answer,
        refusals=refusals,
        status_of=_status,
    )
    return attrs.evolve(known, **more)


_WAIT = described(one_of("true", "false"), "false: answer at once, with 202.")

_INFERENCE: dict[Key, Operation] = {
    ("POST", "/v1/chat/completions"): _asking(
        "Answer a chat, whole or as a stream.",
        openai.ChatRequest,
        ref("ChatCompletion"),
        events=ref("ChatCompletionChunk"),
        example={"model": _DEMO, "messages": _MESSAGES},
    ),
    ("POST", "/v1/completions"): _asking(
        "Continue a text, whole or as a stream.",
        openai.CompletionRequest,
        ref("Completion"),
        events=ref("Completion"),
        example={"model": _DEMO, "prompt": "Cortex is", "max_tokens": 16},
    ),
    ("POST", "/v1/embeddings"): _asking(
        "Give the vectors of texts.",
        embeddings.EmbeddingRequest,
        ref("EmbeddingList"),
        example={"model": _DEMO, "input": ["one text", "another"]},
    ),
    ("POST", "/tokenize"): _asking(
        "Render a prompt with the model's template, and count its tokens.",
        openai.TokenizeRequest,
        ref("TokenCount"),
        example={"model": _DEMO, "messages": _MESSAGES},
    ),
}
_STATE: dict[Key, Operation] = {
    ("GET", "/discovery"): Operation(
        summary="Tell of the host and its devices.", tag="State", answer=ref("Discovery")
    ),
    ("GET", "/health"): Operation(
        summary="Say how devices and models are: always 200, its body is true.",
        tag="State",
        answer=ref("Health"),
    ),
    ("GET", "/livez"): Operation(
        summary="Say that the process lives.", tag="State", answer=record({"status": STRING})
    ),
    ("GET", "/readyz"): Operation(
        summary="Say whether the loaded models give tokens.",
        tag="State",
        answer=ref("NeuronReadiness"),
        also={503: ref("NeuronReadiness")},
    ),
    ("GET", "/version"): Operation(
        summary="Say which version runs.", tag="State", answer=ref("Version")
    ),
    ("GET", "/metrics"): Operation(
        summary="Metrics for Prometheus.",
        tag="State",
        answer=STRING,
        media="text/plain",
    ),
    ("GET", "/openapi.json"): Operation(
        summary="This document.", tag="State", answer={"type": "object"}
    ),
    ("POST", "/restart"): Operation(
        summary="Replace the process of an idle neuron by a new one with the same models.",
        tag="State",
        also={202: ref("RestartAnswer")},
        refusals=(errors.Conflict,),
    ),
}
_MODELS: dict[Key, Operation] = {
    ("GET", "/models"): Operation(
        summary="List the models that are here.", tag="Models", answer=array(ref("Model"))
    ),
    ("POST", "/models/load"): Operation(
        summary="Load a model, and answer when it is there.",
        tag="Models",
        body=neuron.LoadRequest,
        answer=ref("LoadAnswer"),
        also={202: ref("LoadAnswer")},
        query={"wait": _WAIT},
        refusals=_LOADING,
        example={"model_id": _DEMO},
    ),
    ("POST", "/models/unload"): Operation(
        summary="Take a model away.",
        tag="Models",
        body=neuron.UnloadRequest,
        answer=ref("UnloadAnswer"),
        refusals=(errors.ModelNotFound, errors.Conflict),
        example={"model_id": _DEMO},
    ),
    ("POST", "/models/estimate"): Operation(
        summary="Say what a load would take, in bytes, from headers alone.",
        tag="Models",
        body=neuron.LoadRequest,
        answer=ref("Estimate"),
        refusals=(errors.ModelNotFound, *_LOADING),
        example={"model_id": _DEMO},
    ),
    ("GET", "/models/pulls"): Operation(
        summary="Tell how far pulls are.", tag="Models", answer=ref("Pulls")
    ),
    ("POST", "/models/pull"): Operation(
        summary="Fetch a model's files, and answer when they are there.",
        tag="Models",
        body=neuron.PullRequest,
        answer=ref("Pull"),
        also={202: ref("Pull")},
        query={"wait": _WAIT},
        refusals=(errors.ModelNotFound, *_LOADING),
        example={"model_id": _DEMO},
    ),
    ("POST", "/models/pull/cancel"): Operation(
        summary="Stop a pull; what came is kept for the next one.",
        tag="Models",
        body=neuron.CancelPull,
        answer=record({"status": one_of("cancelled")}),
        refusals=(errors.ModelNotFound,),
        example={"model_id": _DEMO},
    ),
    ("GET", "/models/{id:path}/endpoint"): Operation(
        summary="Say where a model is served.",
        tag="Models",
        answer=ref("Endpoint"),
        refusals=(errors.ModelNotFound,),
    ),
    ("GET", "/models/{id:path}/capabilities"): Operation(
        summary="Say what a model can do.",
        tag="Models",
        answer=ref("Capabilities"),
        refusals=(errors.ModelNotFound,),
    ),
}

PUBLIC_PATHS = frozenset({"/livez", "/readyz"})
_READINESS = record(
    {"ready": BOOLEAN, "models": INTEGER, "token?": PROOF, "reason?": STRING},
)
OPERATIONS: dict[Key, Operation] = {**_INFERENCE, **_MODELS, **_STATE}
KEYS = {"bearer": {"type": "http", "scheme": "bearer"}}


def document() -> Document:
    """The neuron's document."""
    components = request_components()
    components.add({**OPENAI_ANSWERS, "NeuronReadiness": _READINESS})
    for cls in _TOLD:
        components.of(cls)
    return Document(
        title="cortex neuron",
        description="One machine's models. Where the neuron has a token, routes want it.",
        version=__version__,
        operations=OPERATIONS,
        components=components,
        scope_of=lambda path: "public" if path in PUBLIC_PATHS else "inference",
        keys=KEYS,
    )


def encoded() -> bytes:
    """The same, as JSON."""
    return json.dumps(document().build())
