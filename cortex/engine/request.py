"""What the engine is asked and what it answers: values only, no torch.

All token counts and ids are in the model's vocabulary; logprobs are natural logarithms of the
model's own distribution, before constraints, penalties, bias and temperature.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

from cortex.engine.constraint import Constraint

SEED_LIMIT = 1 << 64


class Pooling(enum.StrEnum):
    """Which hidden states of a prompt make its embedding."""

    LAST = "last"  # that of the last token
    MEAN = "mean"  # the mean over all tokens


class FinishReason(enum.StrEnum):
    """Why a request ended by itself. An abort ends it without an event."""

    STOP = "stop"
    LENGTH = "length"


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@attrs.frozen
class SamplingParams:
    """How the next token is drawn.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; ties at a cut
    are kept. ``repetition_penalty`` regards prompt and completion, the presence and frequency
    penalties the completion alone. ``logprobs`` None asks for none, k for the chosen token's and
    those of the k best. ``prompt_logprobs`` asks for those of prompt tokens 1.. (it forgoes the
    prefix cache). With the same ``seed`` a request draws the same whatever runs beside it.

    Raises ValueError when a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    seed: int | None = None

    def __attrs_post_init__(self) -> None:
        finite = math.isfinite
        _check(finite(self.temperature) and self.temperature >= 0, "temperature must be >= 0")
        _check(self.top_k >= 0, "top_k must be >= 0")
        _check(0 < self.top_p <= 1, "top_p must be above 0 and at most 1")
        _check(0 <= self.min_p <= 1, "min_p must be between 0 and 1")
        _check(
            finite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty must be above 0",
        )
        _check(finite(self.presence_penalty), "presence_penalty must be finite")
        _check(finite(self.frequency_penalty), "frequency_penalty must be finite")
        _check(self.logprobs is None or self.logprobs >= 0, "logprobs must be >= 0")
        for token, bias in self.logit_bias:
            _check(token >= 0 and finite(bias), "logit_bias needs token ids and finite biases")

    @property
    def penalised(self) -> bool:
        """Whether the draw depends on which tokens occurred before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@attrs.frozen
class Request:
    """One completion to make. Raises ValueError when it can never be run.

    ``stop_ids`` are all of the model's EOS ids; until ``min_tokens`` were generated they cannot be
    drawn, with ``ignore_eos`` they have no meaning. A ``constraint`` overrules both: a stop id can
    be drawn when and only when it allows that, and ends the request. ``caller`` is whom fairness is
    between, ``salt`` separates tenants in the prefix cache, a higher ``priority`` goes first.

    The last ``resumed`` tokens of the prompt are the completion's own, of an earlier request that
    this one carries on: penalties count them so. With ``pooling`` nothing is drawn: the request
    ends with its prefill, as an `Embedded`, and what is said of completions has no meaning.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    caller: str = ""
    salt: bytes = b""
    priority: int = 0
    resumed: int = 0
    pooling: Pooling | None = None
    constraint: Constraint | None = attrs.field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        _check(len(self.prompt) >= 1, "the prompt is empty")
        _check(0 <= self.resumed <= len(self.prompt), "resumed tokens are part of the prompt")
        _check(self.max_tokens >= 1, "max_tokens must be >= 1")
        _check(self.min_tokens >= 0, "min_tokens must be >= 0")


@attrs.frozen
class TokenLogprob:
    """The logprob of ``token``, and of the best tokens in falling order."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@attrs.frozen
class FirstToken:
    """What is known once a request has its first token.

    ``cached_tokens`` of the prompt came from the prefix cache; ``scheduled_at`` is the engine
    clock when it was first scheduled; ``prompt_logprobs`` has one entry a prompt token, None for
    the first.
    """

    cached_tokens: int
    scheduled_at: float
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None


@attrs.frozen
class TokenEvent:
    """One token. A stop id that ends the request is delivered too, with ``finish`` STOP; so is the
    token that makes a constrained completion whole, which is no stop id."""

    request_id: str
    token: int
    finish: FinishReason | None
    logprob: TokenLogprob | None
    first: FirstToken | None


@attrs.frozen(eq=False)
class Embedded:
    """The embedding of a prompt, and the end of its request.

    ``vector`` is ``(hidden,)`` fp32: normalised hidden states of the model's last layer, pooled,
    not scaled to any length. ``cached_tokens`` and ``scheduled_at`` as in `FirstToken`.
    """

    request_id: str
    vector: npt.NDArray[np.float32]
    cached_tokens: int
    scheduled_at: float


@attrs.frozen
class RequestFailed:
    """The request ended by a fault of its own; the others go on."""

    request_id: str
    error: Exception


Event = TokenEvent | Embedded | RequestFailed
