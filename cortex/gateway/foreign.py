"""Servers of another make, as the gateway speaks to them: plain OpenAI. Pure.

They get OpenAI's own fields and nothing else, since some refuse what they do not know; a server
that knows more is told so in its ``pass_fields``. What they list is loaded, for nothing can be
loaded or unloaded there.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from cortex import __version__, errors
from cortex.config.gateway import NeuronNode
from cortex.errors import BadRequest, CortexError, UpstreamError, clip
from cortex.wire import neuron as wire

MODELS_PATH = "/v1/models"
TOKENIZE_PATH = "/tokenize"
EVERYTHING = "*"  # in pass_fields
OURS = frozenset({"thinking", "on_overflow", "structured"})

_SAMPLING = frozenset(
    [
        "model",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    ]
)
# OpenAI's request fields by route (`reference/api.md` 1.1).
FIELDS: dict[str, frozenset[str]] = {
    "/v1/chat/completions": _SAMPLING
    | frozenset(
        [
            "messages",
            "audio",
            "function_call",
            "functions",
            "max_completion_tokens",
            "metadata",
            "modalities",
            "parallel_tool_calls",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning_effort",
            "response_format",
            "safety_identifier",
            "service_tier",
            "store",
            "tool_choice",
            "tools",
            "top_logprobs",
            "verbosity",
            "web_search_options",
        ]
    ),
    "/v1/completions": _SAMPLING | {"prompt", "best_of", "echo", "suffix"},
    "/v1/embeddings": frozenset({"model", "input", "dimensions", "encoding_format", "user"}),
}
# The two names of one bound: a server that does not know one of them is sent the other.
LIMITS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
REASONING = ("reasoning_content", "reasoning")  # of a message; some servers refuse them
# Tokens of thinking up to which an effort is meant; more is "high".
EFFORTS = ((4096, "low"), (16_384, "medium"))

_CONTEXT = (
    re.compile(r"maximum context length is (\d+) tokens"),
    re.compile(r"context (?:size|length|window)[^0-9]{0,40}?(\d+)"),
)
_PROMPT = (
    re.compile(r"\((\d+) in the (?:messages|prompt)"),
    re.compile(
        r"your (?:request|prompt|messages) (?:has|contains?|resulted in) (?:at least )?(\d+)"
    ),
    re.compile(r"prompt (?:contains|has) (?:at least )?(\d+)"),
    re.compile(r"requested (\d+) tokens"),
)


def base_url(endpoint: str) -> str:
    """*endpoint*, with or without ``/v1`` at its end, as the base of paths that begin with that."""
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")


def headers_for(node: NeuronNode) -> dict[str, str]:
    """What goes with each request: its key, and what is configured, which wins."""
    # Without accept-encoding a server may choose any.
    found = {"user-agent": f"cortex/{__version__}", "accept-encoding": "identity"}
    if node.token is not None:
        found["authorization"] = f"Bearer {node.token}"
    return found | {name.lower(): value for name, value in (node.headers or {}).items()}


# Models


def models_of(node: NeuronNode, listing: Any) -> tuple[wire.Model, ...]:
    """The models that *node* serves, from its answer to ``GET /v1/models``.

    ``source`` is that server's own name. `UpstreamError` when the answer is no such list.
    """
    data = listing.get("data") if isinstance(listing, dict) else listing
    if not isinstance(data, list):
        raise UpstreamError(f"neuron {node.name} answered {MODELS_PATH} with something else")
    items: dict[str, dict[str, Any]] = {}
    for item in data:
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            items[item["id"]] = item
    return tuple(
        _model(public, theirs, items[theirs])
        for public, theirs in _names(node, items).items()
        if theirs in items
    )


def mapped_models(node: NeuronNode) -> tuple[wire.Model, ...]:
    """The models of a node that lists none, as they are configured."""
    return tuple(_model(public, theirs, {}) for public, theirs in (node.models or {}).items())


def health_of(node: NeuronNode, models: tuple[wire.Model, ...]) -> wire.Health:
    """What a node's health comes to that tells none: it answers, and takes so many requests."""
    if node.max_in_flight is None:
        return wire.Health(0.0)
    most = node.max_in_flight
    loads = (wire.ModelLoad(model.id, max_in_flight=most, max_queue_depth=0) for model in models)
    return wire.Health(0.0, models=tuple(loads))


def _names(node: NeuronNode, listed: Mapping[str, Any]) -> dict[str, str]:
    """Public ids and the server's names, as far as they may be served."""
    names = dict(node.models or {})
    if node.models is not None and not node.include:
        return names
    taken = set(names.values())
    for theirs in listed:
        wanted = not node.include or any(fnmatch.fnmatchcase(theirs, p) for p in node.include)
        if wanted and theirs not in taken and re.fullmatch(wire.MODEL_ID, theirs):
            names.setdefault(theirs, theirs)
    return names


def _model(public: str, theirs: str, item: dict[str, Any]) -> wire.Model:
    created = item.get("created")
    context = _context_of(item)
    return wire.Model(
        public,
        wire.LOADED,
        harness="openai",
        source=theirs,
        limit=None if context is None else wire.Limit(context),
        loaded_at=float(created) if type(created) is int and created > 0 else None,
    )


def _context_of(item: dict[str, Any]) -> int | None:
    """The context in tokens, under the names that vLLM, llama.cpp and providers give it."""
    meta = item.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    for value in (
        item.get("max_model_len"),
        item.get("context_length"),
        item.get("context_window"),
        meta.get("n_ctx"),
    ):
        if type(value) is int and value > 0:
            return value
    return None


# Requests


def body_for(node: NeuronNode, path: str, body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """*body* as *node* takes it on *path*, for what it calls *model*.

    `BadRequest` for what would be another request without the field that it does not know.
    """
    passed = frozenset(node.pass_fields)
    if "structured" not in passed and body.get("structured") is not None:
        raise BadRequest(
            "the server of this model does not know structured; use response_format",
            param="structured",
        )
    known = FIELDS.get(path, frozenset(body))
    sent = {
        name: value
        for name, value in body.items()
        if name in known or name in passed or (EVERYTHING in passed and name not in OURS)
    }
    effort = _effort(body)
    if effort is not None and "reasoning_effort" in known:
        sent["reasoning_effort"] = effort
    if isinstance(sent.get("messages"), list) and not passed & {EVERYTHING, *REASONING}:
        sent["messages"] = [_without_reasoning(message) for message in sent["messages"]]
    for name in node.drop_fields:
        value = sent.pop(name, None)
        other = LIMITS.get(name)
        if value is not None and other is not None and other not in node.drop_fields:
            sent.setdefault(other, value)
    sent["model"] = model
    return sent


def tokenize_body(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The body of vLLM's ``POST /tokenize`` for the prompt of a chat request, or a plain one."""
    if body.get("prompt") is not None:
        return {"model": model, "prompt": body["prompt"]}
    kept = ("messages", "tools", "chat_template_kwargs", "continue_final_message")
    sent = {name: body[name] for name in kept if name in body}
    return {
        **sent,
        "model": model,
        "add_generation_prompt": body.get("add_generation_prompt", True),
    }


def _effort(body: Mapping[str, Any]) -> str | None:
    given = body.get("reasoning_effort")
    if isinstance(given, str):
        return "xhigh" if given == "max" else given
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if type(budget) is not int:
        return None
    return next((effort for most, effort in EFFORTS if budget <= most), "high")


def _without_reasoning(message: Any) -> Any:
    if not isinstance(message, dict) or not any(name in message for name in REASONING):
        return message
    return {name: value for name, value in message.items() if name not in REASONING}


# Errors


def refusal(node: str, status: int, told: CortexError) -> CortexError:
    """What a server's answer with *status* means for the client; *told* is as it was parsed.

    What is wrong with the request stays so. What is wrong with the server, its key or its list of
    models is no fault of the client's.
    """
    message = f"{node}: {clip(told.message, 800)}"
    if status == 404 and _is_about_model(told):
        return errors.ModelNotFound(message)  # the router looks again, and says what is true then
    if status in (404, 405, 501):
        return errors.NotFound(f"{message} (this route is not served for the model)")
    if status >= 500 and not isinstance(told, errors.Unavailable | errors.Overloaded):
        return UpstreamError(message)
    return _too_long(told, message) or _said(type(told), told, message)


def _said(cls: type[CortexError], told: CortexError, message: str, **extras: Any) -> CortexError:
    if "loading" in told.extras:  # another gateway says how far a load is
        extras["loading"] = told.extras["loading"]
    return cls(
        message,
        param=told.param,
        code=told.error_code if cls is type(told) else None,
        retry_after=told.retry_after,
        extras=extras,
    )


def _is_about_model(told: CortexError) -> bool:
    return isinstance(told, errors.ModelNotFound) or "model" in told.message.lower()


def _too_long(told: CortexError, message: str) -> CortexError | None:
    """A prompt beyond the context, said in one of the ways that servers have, with its numbers, by
    which a client compacts its prompt; None for anything else."""
    if not isinstance(told, BadRequest):
        return None
    text = told.message.lower()
    context = _number(told.extras.get("n_ctx")) or _found(_CONTEXT, text)
    prompt = _number(told.extras.get("n_prompt_tokens")) or _found(_PROMPT, text)
    known = isinstance(told, errors.ContextLengthExceeded)
    if not known and (context is None or prompt is None):
        return None
    extras = {"prompt_tokens": prompt, "max_tokens": None, "context": context}
    return _said(errors.ContextLengthExceeded, told, message, **extras)


def _number(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _found(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    for pattern in patterns:
        match = pattern.search(text)
        if match is not None and len(match[1]) <= 12:
            return int(match[1])
    return None
