"""Drawing with parameters on the device against the sampler, which has an oracle of its own."""

from __future__ import annotations

import pytest
import torch

from cortex.engine.kernels.ops import DrawParams
from cortex.engine.kernels.torch_draw import draw
from cortex.engine.request import Request, SamplingParams
from cortex.engine.sampler import Sampler, uniform
from cortex.engine.sequence import Sequence

KINDS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3, top_k=5),
    SamplingParams(temperature=5.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=0.7),
    SamplingParams(temperature=1.0, top_p=1e-6),
    SamplingParams(temperature=1.3, top_k=6, top_p=0.6),
    SamplingParams(temperature=1.0, min_p=0.2),
    SamplingParams(temperature=1.4, top_k=9, top_p=0.9, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=10_000),
)


def params_of(sequences: list[Sequence]) -> DrawParams:
    kinds = [sequence.request.sampling for sequence in sequences]
    return DrawParams(
        temperature=torch.tensor([k.temperature for k in kinds]),
        top_k=torch.tensor([k.top_k for k in kinds], dtype=torch.int32),
        top_p=torch.tensor([k.top_p for k in kinds]),
        min_p=torch.tensor([k.min_p for k in kinds]),
        uniform=torch.tensor([uniform(s.seed, s.length) for s in sequences], dtype=torch.float64),
    )


@pytest.mark.parametrize("vocab", [7, 97, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_the_draws_are_the_samplers(vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(KINDS), vocab, generator=generator) * 3
    logits[::2, 1] = logits[::2, 3]  # ties
    sequences = [
        Sequence(Request("r", (1, 2), kind, 5), seed=seed * 100 + i, limit=10, arrival=0)
        for i, kind in enumerate(KINDS)
    ]
    wanted = Sampler(vocab, torch.device("cpu")).draw(logits, sequences)
    assert torch.equal(draw(logits, params_of(sequences)), wanted)
