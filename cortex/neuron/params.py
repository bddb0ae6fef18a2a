"""From a request's fields to what the engine is asked. Pure.

Sampling defaults resolve request > the model's generation_config.json > fallback; temperature 0 is
greedy whatever else is set (`reference/original.md` 5.6).
"""

from __future__ import annotations

from typing import TypeVar

import attrs

from cortex.engine.load.generation import GenerationDefaults
from cortex.engine.request import SamplingParams
from cortex.errors import BadRequest, ContextLengthExceeded
from cortex.text.template import EFFORTS, TemplateFeatures
from cortex.wire.openai import ChatRequest, CompletionRequest, SamplingFields

FALLBACK_TEMPERATURE = 0.7
T = TypeVar("T")

COMPLETION_TOKENS = 16  # OpenAI's default on /v1/completions


@attrs.frozen
class Budget:
    """Tokens a request may still generate; ``clamped`` when the client asked for more."""

    max_tokens: int
    clamped: bool


def sampling_params(
    request: SamplingFields, defaults: GenerationDefaults, vocab_size: int
) -> SamplingParams:
    """How the engine draws for *request*. `BadRequest` for a bias on an unknown token."""
    bias = tuple((int(token), value) for token, value in (request.logit_bias or {}).items())
    if any(token >= vocab_size for token, _ in bias):
        raise BadRequest(f"logit_bias: token ids must be below {vocab_size}", param="logit_bias")
    temperature = _first(request.temperature, _own_temperature(defaults))
    return SamplingParams(
        temperature=FALLBACK_TEMPERATURE if temperature is None else temperature,
        top_k=max(0, _first(request.top_k, defaults.top_k) or 0),
        top_p=_first(request.top_p, defaults.top_p) or 1.0,
        min_p=_first(request.min_p, defaults.min_p) or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty) or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
        logprobs=_logprobs(request),
        prompt_logprobs=isinstance(request, CompletionRequest)
        and bool(request.echo)
        and request.logprobs is not None,
        seed=None if request.seed is None else request.seed % 2**64,
    )


def budget(request: SamplingFields, prompt_tokens: int, context: int) -> Budget:
    """What *request* may generate after *prompt_tokens* in a model that holds *context* tokens.

    A prompt that leaves no room is refused; a limit beyond the room is cut, or refused where the
    request says ``on_overflow: error``.
    """
    wanted = request.max_tokens
    if isinstance(request, ChatRequest):
        wanted = request.completion_limit
    elif wanted is None:
        wanted = COMPLETION_TOKENS
    room = context - prompt_tokens
    numbers = {"prompt_tokens": prompt_tokens, "max_tokens": wanted, "context": context}
    if room < 1:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {context} tokens, but the prompt has "
            f"{prompt_tokens} tokens",
            param="messages" if isinstance(request, ChatRequest) else "prompt",
            extras=numbers,
        )
    if wanted is None:
        return Budget(room, clamped=False)
    if wanted > room and request.on_overflow == "error":
        raise ContextLengthExceeded(
            f"this model's maximum context length is {context} tokens, but {prompt_tokens} of the "
            f"prompt and {wanted} of the completion were requested",
            param="max_tokens",
            extras=numbers,
        )
    return Budget(min(wanted, room), clamped=wanted > room)


def thinking_kwargs(
    kwargs: dict[str, object] | None, effort: str | None, features: TemplateFeatures
) -> dict[str, object]:
    """Template arguments. ``reasoning_effort`` none or minimal turns thinking off, others on, by
    the switches that the template reads; one that reads the effort itself is given the nearest that
    it takes. What the client said itself in ``chat_template_kwargs`` wins."""
    resolved = dict(kwargs or {})
    if effort is None:
        return resolved
    for switch in features.switches:
        resolved.setdefault(switch, effort not in ("none", "minimal"))
    if features.efforts:
        wanted = EFFORTS.index(effort)
        nearest = min(features.efforts, key=lambda e: abs(EFFORTS.index(e) - wanted))
        resolved.setdefault("reasoning_effort", nearest)
    return resolved


def _own_temperature(defaults: GenerationDefaults) -> float | None:
    """The model's temperature; a model that says ``do_sample: false`` is greedy by default."""
    return 0.0 if defaults.do_sample is False else defaults.temperature


def _first(given: T | None, otherwise: T | None) -> T | None:
    return otherwise if given is None else given


def _logprobs(request: SamplingFields) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None
