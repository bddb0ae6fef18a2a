"""Draws without sorting against the sampler that sorts, number for number."""

from __future__ import annotations

import math

import pytest
import torch

from cortex.engine.kernels.ops import DrawParams
from cortex.engine.kernels.triton import sampling
from cortex.engine.kernels.triton.sampling import TritonSampler
from cortex.engine.kernels.triton.scratch import Scratch
from cortex.engine.request import Request, SamplingParams
from cortex.engine.sampler import Sampler, uniform
from cortex.engine.sequence import Sequence

# Interpreted, what would be inf or NaN without a word on a GPU makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

OFF = SamplingParams()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several programs a row of a small vocabulary."""
    torch.manual_seed(0)
    monkeypatch.setattr(sampling, "CHUNK", 64)


def sequences_of(params, seed):
    requests = [Request(str(i), (1,), p, max_tokens=9) for i, p in enumerate(params)]
    return [Sequence(r, seed=seed + i, limit=9, arrival=i) for i, r in enumerate(requests)]


def drawn(device, logits, params, numbers, **options):
    def column(values, dtype):
        return torch.tensor(values, dtype=dtype, device=device)

    columns = DrawParams(
        temperature=column([p.temperature for p in params], torch.float32),
        top_k=column([p.top_k for p in params], torch.int32),
        top_p=column([p.top_p for p in params], torch.float32),
        min_p=column([p.min_p for p in params], torch.float32),
        uniform=column(numbers, torch.float64),
    )
    return TritonSampler(Scratch(device)).draw(logits.to(device), columns, **options)


def both(device, logits, params, seed, **options):
    sequences = sequences_of(params, seed)
    wanted = Sampler(logits.shape[1], torch.device("cpu")).draw(logits, sequences)
    numbers = [uniform(s.seed, len(s.tokens)) for s in sequences]
    return drawn(device, logits, params, numbers, **options).cpu(), wanted


MIXES = {
    "plain": [OFF, SamplingParams(temperature=0.7), SamplingParams(temperature=0)],
    "top_k": [SamplingParams(top_k=k) for k in (1, 7, 120, 1000)],
    "top_p": [SamplingParams(top_p=p, temperature=2) for p in (0.01, 0.3, 0.99, 1)],
    "min_p": [SamplingParams(min_p=p) for p in (0.01, 0.2, 1.0)],
    "all": [
        SamplingParams(temperature=1.5, top_k=40, top_p=0.8, min_p=0.05),
        SamplingParams(temperature=0.9, top_k=3, top_p=0.99),
        SamplingParams(temperature=0, top_k=5),
        OFF,
    ],
}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("size", [50, 130])
@pytest.mark.slow
def test_the_tokens_are_the_samplers(device, name, size):
    params = MIXES[name]
    logits = torch.randn(len(params), size) * 3
    cuts = {
        "cut_k": any(p.top_k for p in params),
        "cut_p": any(p.top_p < 1 for p in params),
    }
    found, wanted = both(device, logits, params, size, **cuts)
    assert found.tolist() == wanted.tolist()


def test_cuts_that_nobody_asks_for_can_be_left_out(device):
    logits = torch.randn(2, 80)
    for params, options in (
        (SamplingParams(top_k=5), {"cut_p": False}),
        (SamplingParams(top_p=0.5), {"cut_k": False}),
        (OFF, {"cut_k": False, "cut_p": False}),
        (SamplingParams(temperature=0), {"warm": False}),
    ):
        found, wanted = both(device, logits, [params] * 2, 7, **options)
        assert found.tolist() == wanted.tolist()


def test_ties_at_a_cut_are_kept(device):
    logits = torch.full((1, 100), -5.0)
    logits[0, [3, 70, 99]] = 2.0
    numbers = [0.1, 0.5, 0.9]
    for params, cuts in (
        (SamplingParams(top_k=1), {"cut_p": False}),
        (SamplingParams(top_p=0.1), {"cut_k": False}),
        (SamplingParams(min_p=1), {"cut_k": False, "cut_p": False}),
    ):
        found = drawn(device, logits.expand(3, -1).contiguous(), [params] * 3, numbers, **cuts)
        assert found.tolist() == [3, 70, 99]


def test_the_first_of_equals_is_the_greedy_one(device):
    logits = torch.zeros(1, 200)
    logits[0, [66, 130, 131]] = 1.0
    found = drawn(device, logits, [SamplingParams(temperature=0)], [0.5])
    assert found.tolist() == [66]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), OFF, SamplingParams(top_k=2)])
def test_what_a_bitmask_forbids_is_never_drawn(device, params):
    size, allowed = 80, [0, 31, 32, 63, 79]
    logits = torch.randn(3, size) * 4
    mask = torch.zeros(3, math.ceil(size / 32), dtype=torch.int64)
    for token in allowed:
        mask[:, token // 32] |= 1 << (token % 32)
    mask = torch.where(mask >= 1 << 31, mask - (1 << 32), mask).int()
    forbidden = torch.full_like(logits, float("-inf"))
    forbidden[:, allowed] = logits[:, allowed]
    cuts = {"cut_k": params.top_k > 0, "cut_p": False}
    numbers = [0.2, 0.6, 0.9]
    found = drawn(device, logits, [params] * 3, numbers, bitmask=mask.to(device), **cuts)
    wanted = drawn(device, forbidden, [params] * 3, numbers, **cuts)
    assert found.tolist() == wanted.tolist()
    assert set(found.tolist()) <= set(allowed)


def test_numbers_at_the_ends(device):
    logits = torch.full((2, 130), float("-inf"))
    logits[:, [5, 77]] = 0.0
    found = drawn(device, logits, [OFF] * 2, [0.0, 1 - 2**-53], cut_k=False, cut_p=False)
    assert found.tolist() == [5, 77]


def test_frequencies_follow_the_probabilities(device):
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log()
    numbers = [(i + 0.5) / 30 for i in range(30)]
    rows = logits.expand(30, -1).contiguous()
    found = drawn(device, rows, [OFF] * 30, numbers, cut_k=False, cut_p=False)
    assert found.bincount(minlength=3).tolist() == [0, 10, 20]


def test_noise_is_still_a_token(device):
    logits = torch.full((2, 70), float("nan"))
    logits[1] = float("-inf")
    found = drawn(device, logits, [SamplingParams(top_k=3, top_p=0.5)] * 2, [0.9, 0.9])
    assert all(0 <= token < 70 for token in found.tolist())
