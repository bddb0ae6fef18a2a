"""How long a step of decode takes, and how fast a prompt is read."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

import attrs

from cortex.engine.bench.ceilings import Ceilings
from cortex.engine.bench.shapes import matrix_elements
from cortex.engine.engine import Engine
from cortex.engine.models.config import ModelConfig
from cortex.engine.request import Request, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
PREFILL_REPEATS = 5


@attrs.frozen
class DecodeFigure:
    """``batch`` sequences with ``context`` tokens each: seconds a step, measured and at least."""

    batch: int
    context: int
    step: float
    floor: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.batch / self.step

    @property
    def share(self) -> float:
        return self.floor / self.step


@attrs.frozen
class PrefillFigure:
    """A prompt of ``tokens``: seconds to its first token, and what its products alone take."""

    tokens: int
    seconds: float
    floor: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def share(self) -> float:
        return self.floor / self.seconds


@attrs.frozen
class Traffic:
    """What steps of an engine cost: bytes of weights read by each, and of KV a token."""

    config: ModelConfig
    matrix_bytes: int
    kv_token_bytes: int

    def decode_floor(self, batch: int, context: int, ceilings: Ceilings) -> float:
        """Seconds of a step that reads weights once and every sequence's KV, or that is bound by
        its products, whichever is longer; attention follows the products."""
        products = 2 * matrix_elements(self.config) * batch / ceilings.matmul
        weights = self.matrix_bytes / ceilings.bandwidth
        return max(weights, products) + batch * context * self.kv_token_bytes / ceilings.bandwidth

    def prefill_floor(self, tokens: int, ceilings: Ceilings) -> float:
        """Seconds of the products of *tokens* rows, one of which reaches the head, with causal
        attention's two products."""
        config = self.config
        head = config.vocab_size * config.hidden_size
        linear = 2 * (matrix_elements(config) - head) * tokens + 2 * head
        attention = 2 * config.layers * config.heads * config.head_dim * tokens * tokens
        return (linear + attention) / ceilings.matmul


def prompts(count: int, length: int, vocab_size: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Random ids; no two share a prefix."""
    rng = random.Random(seed)
    for _ in range(count):
        yield tuple(rng.randrange(vocab_size) for _ in range(length))


def decode(
    engine: Engine, traffic: Traffic, ceilings: Ceilings, batch: int, context: int, steps: int
) -> DecodeFigure:
    """The median of *steps* steps of *batch* sequences, each *context* tokens long by then."""
    vocab = traffic.config.vocab_size
    prompt = max(1, context - steps // 2)
    for number, ids in enumerate(prompts(batch, prompt, vocab, seed=batch)):
        engine.add(Request(f"decode-{number}", ids, GREEDY, steps + 4, ignore_eos=True))
    times: list[float] = []
    last = time.perf_counter()
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        if len(events) == batch:
            times.append(now - last)
        last = now
    # The first full steps still wait for prompts, the last one for nobody.
    step = statistics.median(times[2:-1])
    return DecodeFigure(batch, context, step, traffic.decode_floor(batch, context, ceilings))


def prefill(engine: Engine, traffic: Traffic, ceilings: Ceilings, tokens: int) -> PrefillFigure:
    """The median time of a prompt alone, from `Engine.add` to its token."""
    times: list[float] = []
    for number, ids in enumerate(
        prompts(PREFILL_REPEATS + 1, tokens, traffic.config.vocab_size, seed=tokens)
    ):
        started = time.perf_counter()
        engine.add(Request(f"prefill-{number}", ids, GREEDY, 1))
        while engine.has_work:
            engine.step()
        times.append(time.perf_counter() - started)
    floor = traffic.prefill_floor(tokens, ceilings)
    return PrefillFigure(tokens, statistics.median(times[1:]), floor)
