"""The sampler against the same arithmetic in plain Python, one row at a time."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.kernels.torch_draw import LANE, invert
from cortex.engine.request import Request, SamplingParams
from cortex.engine.sampler import CANDIDATES, Sampler, uniform
from cortex.engine.sequence import Sequence

CPU = torch.device("cpu")


def sequence(
    sampling: SamplingParams,
    *,
    prompt: tuple[int, ...] = (1,),
    completion: tuple[int, ...] = (),
    seed: int = 0,
    **options: object,
) -> Sequence:
    request = Request("r", prompt, sampling, 100, **options)
    made = Sequence(request, seed=seed, limit=10_000, arrival=0)
    made.tokens += completion
    return made


def adjusted(row: list[float], s: Sequence) -> list[float]:
    """Penalties, bias, forbidden stop ids."""
    params, out = s.request.sampling, list(row)
    completion = Counter(s.tokens[len(s.request.prompt) :])
    for token in range(len(out)):
        if token in s.tokens:
            rp = params.repetition_penalty
            out[token] = out[token] / rp if out[token] > 0 else out[token] * rp
        if completion[token]:
            out[token] -= params.presence_penalty + params.frequency_penalty * completion[token]
    for token, bias in params.logit_bias:
        out[token] += bias
    if s.generated < s.request.min_tokens and not s.request.ignore_eos:
        for token in s.request.stop_ids:
            out[token] = -math.inf
    return out


def distribution(row: list[float], s: Sequence) -> list[float]:
    """What is left after temperature and cuts; ties at a cut are kept."""
    params = s.request.sampling
    out = [value / params.temperature for value in adjusted(row, s)]
    best = max(out)
    falling = sorted(out, reverse=True)
    floor = -math.inf
    if 0 < params.top_k < len(out):
        floor = falling[params.top_k - 1]
    kept = [v for v in falling if v >= floor]
    total = sum(math.exp(v - best) for v in kept)
    if params.top_p < 1:
        mass = 0.0
        for value in kept:
            mass += math.exp(value - best) / total
            if mass >= params.top_p:
                floor = max(floor, value)
                break
    weights = [math.exp(v - best) if v >= floor else 0.0 for v in out]
    weights = [w if w >= params.min_p * (1 - 1e-6) else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


def oracle(row: list[float], s: Sequence) -> tuple[int, float]:
    """The drawn token, and how far the number drawn with is from another token's share."""
    if s.request.sampling.temperature == 0:
        values = adjusted(row, s)
        best = max(values)
        others = sorted(values)[-2:]
        return values.index(best), best - others[0]
    at, total = uniform(s.seed, len(s.tokens)), 0.0
    for token, share in enumerate(distribution(row, s)):
        if share and total + share > at:
            return token, min(at - total, total + share - at)
        total += share
    raise AssertionError("the shares do not add up to 1")


def rows(count: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 3


PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "plain": SamplingParams(temperature=1.0),
    "cold": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=5.0),
    "top-k": SamplingParams(top_k=5),
    "top-k-1": SamplingParams(top_k=1),
    "top-k-all": SamplingParams(top_k=10_000),
    "top-p": SamplingParams(top_p=0.7),
    "top-p-small": SamplingParams(top_p=1e-6),
    "top-p-after-k": SamplingParams(top_k=6, top_p=0.6),
    "min-p": SamplingParams(min_p=0.2),
    "all-cuts": SamplingParams(temperature=1.4, top_k=9, top_p=0.9, min_p=0.05),
    "repetition": SamplingParams(temperature=0.8, repetition_penalty=1.7),
    "presence": SamplingParams(presence_penalty=2.0),
    "frequency": SamplingParams(frequency_penalty=1.1),
    "negative": SamplingParams(frequency_penalty=-1.0, presence_penalty=-0.5),
    "bias": SamplingParams(logit_bias=((3, 4.0), (0, -100.0), (3, 0.5))),
    "greedy-bias": SamplingParams(temperature=0.0, logit_bias=((7, 50.0),)),
    "greedy-penalty": SamplingParams(temperature=0.0, repetition_penalty=3.0),
}


@pytest.mark.parametrize("name", PARAMS)
def test_each_parameter_is_the_oracles(name: str):
    logits = rows(200, 40)
    sequences = [
        sequence(PARAMS[name], prompt=(1, 5), completion=(5, 5, 7, 2), seed=i) for i in range(200)
    ]
    drawn = Sampler(40, CPU).draw(logits, sequences).tolist()
    for i, token in enumerate(drawn):
        wanted, margin = oracle(logits[i].tolist(), sequences[i])
        assert token == wanted or margin < 1e-5


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**64 - 1),
    vocab=st.integers(2, 30),
    batch=st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
            top_k=st.integers(0, 12),
            top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
            min_p=st.sampled_from([0.0, 0.1, 0.5]),
            repetition_penalty=st.sampled_from([1.0, 0.7, 1.5]),
            presence_penalty=st.sampled_from([0.0, 0.5]),
            frequency_penalty=st.sampled_from([0.0, 0.5]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_any_mixture_of_parameters_is_the_oracles(
    seed: int, vocab: int, batch: list[SamplingParams]
):
    logits = rows(len(batch), vocab, seed % 1000)
    before = logits.clone()
    sequences = [
        sequence(p, prompt=(0,), completion=(1, 1, 0), seed=seed + i) for i, p in enumerate(batch)
    ]
    sampler = Sampler(vocab, CPU)
    drawn = sampler.draw(logits, sequences).tolist()
    assert torch.equal(logits, before)
    for i, token in enumerate(drawn):
        wanted, margin = oracle(logits[i].tolist(), sequences[i])
        assert token == wanted or margin < 1e-5
        alone = Sampler(vocab, CPU).draw(logits[i : i + 1], sequences[i : i + 1])
        assert alone.tolist() == [token]


def test_ties_at_a_cut_are_kept_whatever_the_batch():
    logits = torch.zeros(1, 10)
    counts = Counter(
        int(Sampler(10, CPU).draw(logits, [sequence(SamplingParams(top_k=2), seed=i)]))
        for i in range(300)
    )
    assert len(counts) == 10


@pytest.mark.parametrize("spread", [0.01, 6.0])
def test_a_nucleus_beyond_the_candidates_is_found(spread: float):
    vocab = CANDIDATES * 3
    logits = rows(4, vocab) * spread / 3
    wanted = [
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.2, top_k=CANDIDATES + 5),
        SamplingParams(top_k=CANDIDATES * 2),
        SamplingParams(top_p=0.999, top_k=7),
    ]
    sequences = [sequence(p, seed=9 + i) for i, p in enumerate(wanted)]
    drawn = Sampler(vocab, CPU).draw(logits, sequences).tolist()
    for i, token in enumerate(drawn):
        expected, margin = oracle(logits[i].tolist(), sequences[i])
        assert token == expected or margin < 1e-5


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 7, LANE - 1, LANE, LANE + 1, 3 * LANE + 5]),
    seed=st.integers(0, 1000),
    kept=st.integers(1, 4),
    number=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53])),
)
def test_inverting_never_finds_a_weight_of_nought(size: int, seed: int, kept: int, number: float):
    rng = random.Random(seed)
    weights = torch.zeros(2, size)
    for row in weights:
        for _ in range(kept):
            row[rng.randrange(size)] = rng.random() + 1e-6
    found = invert(weights, torch.tensor([number, 0.5], dtype=torch.float64)).tolist()
    for row, token, at in zip(weights, found, (number, 0.5), strict=True):
        assert row[token] > 0
        total = float(row.double().sum())
        before = float(row[:token].double().sum())
        assert before <= at * total + 1e-6
        assert before + float(row[token]) >= at * total - 1e-6


def test_draws_follow_the_distribution():
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    share = logits.softmax(-1)[0].tolist()
    s = [sequence(SamplingParams(), seed=i) for i in range(4000)]
    counts = Counter(Sampler(4, CPU).draw(logits.expand(4000, 4), s).tolist())
    for token in range(4):
        assert counts[token] / 4000 == pytest.approx(share[token], abs=0.03)


def test_the_number_is_a_function_of_seed_and_position_and_spreads_evenly():
    assert uniform(7, 3) == uniform(7, 3)
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
    numbers = [uniform(seed, at) for seed, at in itertools.product(range(60), range(60))]
    assert len(set(numbers)) == 3600
    assert all(0 <= n < 1 for n in numbers)
    assert sum(numbers) / 3600 == pytest.approx(0.5, abs=0.02)
    buckets = Counter(int(n * 10) for n in numbers)
    assert min(buckets.values()) > 280


def test_stop_ids_cannot_be_drawn_before_the_minimum():
    logits = torch.tensor([[9.0, 1.0, 0.0]])
    stop = {"min_tokens": 3, "stop_ids": frozenset({0, 99})}
    greedy = SamplingParams(temperature=0.0)
    sampler = Sampler(3, CPU)
    assert sampler.draw(logits, [sequence(greedy, completion=(1, 1), **stop)]).tolist() == [1]
    assert sampler.draw(logits, [sequence(greedy, completion=(1, 1, 1), **stop)]).tolist() == [0]
    ignoring = sequence(greedy, ignore_eos=True, **stop)
    assert sampler.draw(logits, [ignoring]).tolist() == [0]


def test_penalties_count_from_step_to_step_as_from_the_start():
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3
    )
    rng = random.Random(0)
    grown, sampler = sequence(params, prompt=(4, 4, 9)), Sampler(12, CPU)
    for step in range(30):
        logits = rows(1, 12, step)
        fresh = sequence(params, prompt=(4, 4, 9), completion=tuple(grown.tokens[3:]))
        wanted = Sampler(12, CPU).draw(logits, [fresh]).tolist()
        assert sampler.draw(logits, [grown]).tolist() == wanted
        grown.tokens += [rng.randrange(12) for _ in range(rng.randrange(1, 3))]
    sampler.forget(grown)
    assert not sampler._penalties._counts
