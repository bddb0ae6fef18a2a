"""Masks against sets of ids, and what happens when a constraint does not do its part."""

from __future__ import annotations

import math
import random
import threading

import numpy as np
import pytest
import torch

from cortex.engine import masks as module
from cortex.engine.constraint import Words
from cortex.engine.masks import Mask, Masks
from cortex.engine.request import Request, SamplingParams
from cortex.engine.sampler import Sampler
from cortex.engine.sequence import Sequence

CPU = torch.device("cpu")


class Only:
    """Allows a set of ids, whatever came before."""

    ended = False

    def __init__(self, ids: set[int]) -> None:
        self.ids = ids
        self.threads: set[str] = set()

    def fill_mask(self, row: Words) -> None:
        self.threads.add(threading.current_thread().name)
        row[:] = 0
        for i in self.ids:
            row.view(np.uint32)[i // 32] |= np.uint32(1 << i % 32)

    def accept(self, token: int) -> None:
        assert token in self.ids


class Failing(Only):
    """Raises *error* when asked for a mask."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(set())
        self.error = error

    def fill_mask(self, row: Words) -> None:
        row[:] = 0
        raise self.error


def sequence(
    constraint: Only | None,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    **options: object,
) -> Sequence:
    sampling = sampling or SamplingParams(temperature=0.0)
    request = Request("r", (1, 2), sampling, 100, constraint=constraint, **options)
    made = Sequence(request, seed=seed, limit=1000, arrival=0)
    made.tokens += [1, 1]
    return made


def begun(vocab: int, sequences: list[Sequence]) -> Mask:
    mask = Masks(vocab, CPU)._begin(sequences)
    assert mask is not None
    return mask


@pytest.mark.parametrize("vocab", [5, 31, 32, 33, 64, 100, 1000])
def test_a_mask_forbids_what_is_not_in_the_set_and_touches_nothing_else(vocab: int) -> None:
    rng = random.Random(vocab)
    sets = [set(rng.sample(range(vocab), rng.randrange(1, vocab))) for _ in range(6)]
    sequences = [sequence(Only(ids) if rng.random() < 0.6 else None) for ids in sets]
    sequences.append(sequence(Only({vocab - 1})))
    logits = torch.randn(len(sequences), vocab)
    masked = logits.clone()
    begun(vocab, sequences).apply(masked)
    for row, s in enumerate(sequences):
        for token in range(vocab):
            free = s.request.constraint is None or token in s.request.constraint.ids
            assert masked[row, token] == (logits[row, token] if free else -math.inf)


def test_no_constraint_no_mask_and_no_thread() -> None:
    masks = Masks(10, CPU)
    assert masks._begin([sequence(None)]) is None
    assert masks._begin([]) is None
    assert masks._pool is None
    masks.close()


def test_masks_are_filled_on_other_threads_which_close_ends() -> None:
    masks, one = Masks(64, CPU), Only({3})
    mask = masks._begin([sequence(one)])
    assert mask is not None
    mask.finish()
    (name,) = one.threads
    assert name.startswith("cortex-mask")
    masks.close()
    masks.close()
    for thread in threading.enumerate():
        if thread.name.startswith("cortex-mask"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize("params", ["greedy", "hot", "penalised", "biased", "cut"])
def test_nothing_brings_a_forbidden_token_back(params: str) -> None:
    sampling = {
        "greedy": SamplingParams(temperature=0.0),
        "hot": SamplingParams(temperature=5.0),
        "penalised": SamplingParams(
            repetition_penalty=0.2, presence_penalty=-2.0, frequency_penalty=-2.0
        ),
        "biased": SamplingParams(logit_bias=((0, 100.0), (1, 100.0), (2, 100.0))),
        "cut": SamplingParams(top_k=3, top_p=0.5, min_p=0.3),
    }[params]
    rng = random.Random(params)
    vocab = 70
    sampler = Sampler(vocab, CPU)
    for seed in range(40):
        sets = [set(rng.sample(range(3, vocab), rng.randrange(1, 5))) for _ in range(3)]
        sequences = [sequence(Only(ids), sampling, seed + i) for i, ids in enumerate(sets)]
        sequences.append(sequence(None, sampling, seed))
        logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed)) * 4
        before = logits.clone()
        drawn = sampler.draw(logits, sequences, begun(vocab, sequences)).tolist()
        assert torch.equal(logits, before)
        for ids, token in zip(sets, drawn, strict=False):
            assert token in ids
        free = Sampler(vocab, CPU).draw(logits[3:], sequences[3:]).tolist()
        assert drawn[3:] == free


def test_a_masked_draw_is_the_draw_from_the_allowed_alone() -> None:
    """Against the same sampler on logits that hold only the allowed tokens."""
    vocab, ids = 50, [3, 17, 31, 32, 49]
    for seed in range(60):
        for sampling in (
            SamplingParams(temperature=1.3),
            SamplingParams(temperature=0.8, top_k=3, top_p=0.8),
            SamplingParams(temperature=0.0),
        ):
            logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * 2
            s = sequence(Only(set(ids)), sampling, seed)
            drawn = int(Sampler(vocab, CPU).draw(logits, [s], begun(vocab, [s])))
            alone = sequence(None, sampling, seed)
            few = int(Sampler(len(ids), CPU).draw(logits[:, ids], [alone]))
            assert drawn == ids[few]


def test_stop_ids_are_the_constraints_business() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0]])
    s = sequence(Only({0, 2}), stop_ids=frozenset({0}), min_tokens=50)
    assert Sampler(3, CPU).draw(logits, [s], begun(3, [s])).tolist() == [0]


def test_a_constraint_that_fails_is_told_by_its_line_and_spoils_no_other() -> None:
    broken, empty, panic = Failing(KeyError("x")), Only(set()), Failing(SystemExit(3))
    beyond = Only({40})  # beyond the vocabulary
    sequences = [sequence(c) for c in (None, broken, Only({7}), empty, panic, beyond)]
    mask = begun(33, sequences)
    logits = torch.randn(6, 33)
    drawn = Sampler(33, CPU).draw(logits, sequences, mask)
    assert drawn[2] == 7
    assert drawn[0] == logits[0].argmax()
    assert sorted(mask.faults) == [1, 3, 4, 5]
    assert isinstance(mask.faults[1], KeyError)
    assert isinstance(mask.faults[4].__cause__, SystemExit)
    assert "no token" in str(mask.faults[3])
    assert "no token" in str(mask.faults[5])


def test_a_constraint_that_does_not_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    gate = threading.Event()

    class Stuck(Only):
        def fill_mask(self, row: Words) -> None:
            assert gate.wait(10)
            super().fill_mask(row)

    masks = Masks(33, CPU)
    mask = masks._begin([sequence(Stuck({1}))])
    assert mask is not None
    try:
        mask.finish()
        assert isinstance(mask.faults[0], TimeoutError)
    finally:
        gate.set()
        masks.close()
