"""How much the scheduler leaves free when it admits, judged by simulated traffic.

A step costs as much as the tokens in it and a constant, which stands for reading the weights once.
Figures are printed by ``pytest -s``.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import pytest

from cortex.engine.blocks import BlockPool
from cortex.engine.request import Request, SamplingParams
from cortex.engine.scheduler import LOOK_AHEAD, Scheduler
from cortex.engine.sequence import Sequence

GREEDY = SamplingParams(temperature=0.0)
REQUESTS = 100
STEP_TOKENS = 64  # what reading the weights costs, in tokens of a prefill
BLOCKS, BLOCK_SIZE, BATCH, BUDGET = 256, 32, 16, 256

Load = Callable[[random.Random], tuple[int, int, int]]  # prompt, completion, max_tokens


def chat(rng: random.Random) -> tuple[int, int, int]:
    """Answers that end by themselves, long before a limit that nobody set."""
    prompt = int(min(4000, rng.lognormvariate(5.5, 1.0))) + 8
    return prompt, int(min(2000, rng.lognormvariate(5.0, 0.8))) + 1, 10**9


def exact(rng: random.Random) -> tuple[int, int, int]:
    """Completions that run into their limit, as a benchmark's do."""
    tokens = rng.randrange(100, 1024)
    return rng.randrange(100, 1024), tokens, tokens


def long(rng: random.Random) -> tuple[int, int, int]:
    """Short questions with long reasoning."""
    return rng.randrange(50, 200), int(min(3000, rng.lognormvariate(6.7, 0.5))) + 1, 10**9


@attrs.frozen
class Outcome:
    preemptions: float  # per 1000 requests
    throughput: float  # completion tokens by cost
    computed: int  # tokens, also those computed again


def simulate(load: Load, look_ahead: int) -> Outcome:
    """`REQUESTS` of *load*, three batches of them there at any time."""
    rng = random.Random(0)
    scheduler = Scheduler(
        BlockPool(BLOCKS, BLOCK_SIZE),
        max_batch=BATCH,
        max_batch_tokens=BUDGET,
        look_ahead=look_ahead,
    )
    ends: dict[str, int] = {}
    cost, computed, generated, arrived, finished = 0.0, 0, 0, 0, 0
    while finished < REQUESTS:
        while arrived < REQUESTS and len(ends) < 3 * BATCH:
            prompt, length, most = load(rng)
            sequence = _sequence(arrived, prompt, min(prompt + most, scheduler.max_tokens))
            ends[sequence.id] = min(prompt + length, sequence.limit)
            generated += ends[sequence.id] - prompt
            scheduler.add(sequence)
            arrived += 1
        plan = scheduler.plan()
        cost += 1 + plan.tokens / STEP_TOKENS
        computed += plan.tokens
        for chunk in plan.chunks:
            scheduler.commit(chunk)
            sequence = chunk.sequence
            if chunk.draws:
                sequence.append(len(sequence.tokens))
                if len(sequence.tokens) >= ends[sequence.id]:
                    scheduler.finish(sequence)
                    del ends[sequence.id]
                    finished += 1
    return Outcome(1000 * scheduler.preemptions / REQUESTS, generated / cost, computed)


def _sequence(number: int, prompt: int, limit: int) -> Sequence:
    tokens = tuple(number * 1_000_003 + i for i in range(prompt))
    request = Request(str(number), tokens, GREEDY, limit - prompt)
    return Sequence(request, seed=0, limit=limit, arrival=number)


@pytest.mark.slow
@pytest.mark.parametrize("load", [chat, exact, long])
def test_a_short_look_ahead_saves_preemptions_and_keeps_the_throughput(load: Load):
    none, ours, much, all_of_it = (
        simulate(load, ahead) for ahead in (0, LOOK_AHEAD, 4 * LOOK_AHEAD, 10**9)
    )
    for outcome in (none, ours, much, all_of_it):
        print(f"{load.__name__}: {outcome}")
    assert ours.preemptions <= 0.7 * none.preemptions
    assert ours.computed < none.computed
    assert ours.throughput >= 0.97 * none.throughput
    # Why not more: nothing is preempted then, and hardly anything runs side by side.
    assert all_of_it.preemptions == 0
    assert all_of_it.throughput < 0.85 * ours.throughput
    assert much.throughput < 0.96 * ours.throughput
