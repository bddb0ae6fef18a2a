"""An inference request made ready: rendered, measured, and cut into completions to run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence

import attrs

from cortex.engine.request import Request
from cortex.errors import BadRequest
from cortex.neuron.generation import Completion, ThinkingBudget
from cortex.neuron.grammars import Guide
from cortex.neuron.model_text import ModelText
from cortex.neuron.params import budget, sampling_params
from cortex.neuron.prompt import Prompt, forbidden_tokens, output_parser
from cortex.neuron.residents import LoadedModel
from cortex.text.deltas import OutputParser
from cortex.wire.neuron import CALLER_HEADER, PRIORITY_HEADER, SALT_HEADER
from cortex.wire.openai import ChatRequest, CompletionRequest, SamplingFields

MAX_COMPLETIONS = 128  # of one request: prompts times n
FORBIDDEN = -100.0  # the bias of a token that must not be drawn
PRIORITY = re.compile(r"-?[0-9]{1,5}")


@attrs.frozen
class Caller:
    """Who a gateway says is asking. A request without a gateway is one anonymous caller."""

    name: str = ""
    salt: bytes = b""
    priority: int = 0
    by_gateway: bool = False

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Caller:
        """Malformed values count as absent: they order and separate, they authorise nothing."""
        name = headers.get(CALLER_HEADER)
        priority = headers.get(PRIORITY_HEADER, "")
        return cls(
            name=(name or "")[:256],
            salt=headers.get(SALT_HEADER, "").encode()[:256],
            priority=int(priority) if PRIORITY.fullmatch(priority) else 0,
            by_gateway=name is not None,
        )


@attrs.frozen(eq=False)
class Job:
    """The completions of one request, prompt by prompt, ``n`` each; and its prompts' lengths."""

    id: str
    completions: Sequence[Completion]
    prompt_tokens: Sequence[int]

    @property
    def seats(self) -> int:
        """How many of an engine's it takes."""
        return len(self.completions)

    @property
    def end(self) -> str:
        """How it ended, once it has."""
        return str(self.completions[0].finish)

    @property
    def tokens(self) -> int:
        """Tokens of its completions so far."""
        return sum(completion.tokens for completion in self.completions)


def chat_job(
    model: LoadedModel,
    request: ChatRequest,
    prompt: Prompt,
    caller: Caller,
    guide: Guide | None = None,
) -> Job:
    return _job(
        model,
        request,
        [prompt],
        caller,
        f"chatcmpl-{secrets.token_hex(12)}",
        lambda prompt: output_parser(model.text, request, prompt),
        guide,
        forbidden_tokens(model.text, request),
    )


def completion_job(
    model: LoadedModel,
    request: CompletionRequest,
    prompts: Sequence[Prompt],
    caller: Caller,
    guide: Guide | None = None,
) -> Job:
    def parser(_: Prompt) -> OutputParser:
        return OutputParser(model.text.tokenizer, stops=request.stops, continues=True)

    return _job(model, request, prompts, caller, f"cmpl-{secrets.token_hex(12)}", parser, guide)


def _job(
    model: LoadedModel,
    request: SamplingFields,
    prompts: Sequence[Prompt],
    caller: Caller,
    job_id: str,
    make_parser: Callable[[Prompt], OutputParser],
    guide: Guide | None,
    forbidden: frozenset[int] = frozenset(),
) -> Job:
    n = request.n or 1
    if len(prompts) * n > MAX_COMPLETIONS:
        raise BadRequest(
            f"{len(prompts)} prompts times n={n} are more than {MAX_COMPLETIONS} completions",
            param="n",
        )
    params = sampling_params(request, model.text.defaults, model.text.tokenizer.vocab_size)
    if forbidden:
        params = attrs.evolve(
            params, logit_bias=(*params.logit_bias, *((i, FORBIDDEN) for i in sorted(forbidden)))
        )
    completions: list[Completion] = []
    for prompt in prompts:
        allowed = budget(request, len(prompt.ids), model.max_context)
        for k in range(n):
            index = len(completions)
            sampling = params
            if params.seed is not None and k:  # n seeded completions are different ones
                sampling = attrs.evolve(params, seed=(params.seed + k) % 2**64)
            completions.append(
                Completion(
                    index,
                    Request(
                        id=f"{job_id}-{index}",
                        prompt=prompt.ids,
                        sampling=sampling,
                        max_tokens=max(1, allowed.max_tokens),
                        min_tokens=min(request.min_tokens or 0, allowed.max_tokens),
                        stop_ids=model.text.defaults.eos_ids | prompt.stop_ids,
                        ignore_eos=bool(request.ignore_eos),
                        caller=caller.name,
                        salt=caller.salt,
                        priority=caller.priority,
                        constraint=None if guide is None else guide.constraint(prompt),
                    ),
                    make_parser(prompt),
                    prompt_only=allowed.max_tokens == 0,
                    budget=_thinking_budget(model.text, request),
                    answer=None if guide is None else guide.answer,
                )
            )
    return Job(job_id, completions, [len(prompt.ids) for prompt in prompts])


def _thinking_budget(text: ModelText, request: SamplingFields) -> ThinkingBudget | None:
    """None where none is asked for, or the model has no markers to tell its thinking by."""
    thinking = request.thinking if isinstance(request, ChatRequest) else None
    if thinking is None or thinking.budget_tokens is None or text.closing is None:
        return None
    return ThinkingBudget(thinking.budget_tokens, text.closing)
