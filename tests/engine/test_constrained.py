"""The engine under constraints: every output is in the language, whatever runs beside it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fakes.requests import GREEDY, ask, drain, tokens_of
from fakes.static_ops import EagerCapture, StaticOps

from cortex.engine.constraint import Words
from cortex.engine.load import checkpoint
from cortex.engine.request import FinishReason, RequestFailed, SamplingParams, TokenEvent

VOCAB = 97
END = 2
HOT = SamplingParams(temperature=2.0)


class Counting:
    """Words of a small automaton: a number of *blocks*, each of two tokens, first below 40, then
    the first one's double plus 10; then the end."""

    def __init__(self, blocks: int, *, end: int | None = END, fault_at: int = -1) -> None:
        self.blocks = blocks
        self.end = end
        self.fault_at = fault_at
        self.accepted: list[int] = []
        self.filled_for: list[int] = []  # how much had been accepted at each mask

    @property
    def ended(self) -> bool:
        if self.end is None:
            return len(self.accepted) == 2 * self.blocks
        return self.accepted[-1:] == [self.end]

    def _next(self) -> set[int]:
        if len(self.accepted) == 2 * self.blocks:
            return {END} if self.end is not None else set()
        if len(self.accepted) % 2:
            return {self.accepted[-1] * 2 + 10}
        return set(range(3, 40))

    def fill_mask(self, row: Words) -> None:
        if len(self.accepted) == self.fault_at:
            raise ArithmeticError("this constraint is broken")
        self.filled_for.append(len(self.accepted))
        row[:] = 0
        for token in self._next():
            row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> None:
        if token not in self._next():
            raise ValueError(f"{token} was not allowed")
        self.accepted.append(token)


def in_language(tokens: list[int], blocks: int, end: int | None = END) -> bool:
    if end is not None:
        if tokens[-1] != end:
            return False
        tokens = tokens[:-1]
    pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
    return len(pairs) == blocks and all(3 <= a < 40 and b == 2 * a + 10 for a, b in pairs)


def constrained(name: str, prompt: list[int], constraint: Counting, **options: object):
    options.setdefault("max_tokens", 200)
    return ask(name, prompt, constraint=constraint, stop_ids=frozenset({END}), **options)


def prompt_of(i: int, length: int = 30) -> list[int]:
    return [(7 * i + j) % VOCAB for j in range(length)]


@pytest.fixture(params=["operations", "programs"])
def way(request, monkeypatch):
    """How a step of nothing but decode runs: operation by operation, or as a captured program."""
    if request.param == "programs":
        made = EagerCapture()
        monkeypatch.setattr(checkpoint, "choose", StaticOps)
        monkeypatch.setattr(checkpoint, "capture_for", lambda device, ops: made)
    return request.param


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("budget", [3, 64, 512])
@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "hot"])
def test_every_output_is_in_the_language_whatever_the_batch(
    open_tiny, way, budget, sampling, overlap
):
    engine = open_tiny(max_batch=min(budget, 6), max_batch_tokens=budget, overlap=overlap)
    constraints = [Counting(1 + i % 5) for i in range(9)]
    for i, constraint in enumerate(constraints):
        engine.add(constrained(f"c{i}", prompt_of(i, 5 + 9 * i), constraint, sampling=sampling))
        engine.add(ask(f"f{i}", prompt_of(i, 20), max_tokens=7, sampling=sampling))
    events = drain(engine)
    for i, constraint in enumerate(constraints):
        found = events[f"c{i}"]
        assert in_language(tokens_of(found), constraint.blocks)
        assert found[-1].finish is FinishReason.STOP
        assert all(event.finish is None for event in found[:-1])
        assert constraint.accepted == tokens_of(found)
        assert constraint.filled_for == list(range(len(found)))  # one mask a token
        assert len(events[f"f{i}"]) == 7


def test_the_free_beside_the_constrained_draw_what_they_draw_alone(open_tiny):
    sampling = SamplingParams(temperature=1.1, seed=9)
    alone = open_tiny()
    for i in range(3):
        alone.add(ask(str(i), prompt_of(i), max_tokens=10, sampling=sampling))
    wanted = {name: tokens_of(found) for name, found in drain(alone).items()}
    mixed = open_tiny()
    for i in range(3):
        mixed.add(ask(str(i), prompt_of(i), max_tokens=10, sampling=sampling))
        mixed.add(constrained(f"c{i}", prompt_of(i), Counting(4), sampling=HOT))
    events = drain(mixed)
    assert {str(i): tokens_of(events[str(i)]) for i in range(3)} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_a_preempted_sequence_keeps_its_place_in_the_language(open_tiny, overlap):
    sampling = SamplingParams(temperature=1.5, seed=3)
    wanted = []
    alone = open_tiny()
    for i in range(6):
        alone.add(constrained(str(i), prompt_of(i), Counting(45), sampling=sampling))
        wanted.append(tokens_of(drain(alone)[str(i)]))
    crowded = open_tiny(blocks=8, max_batch=6, max_batch_tokens=64, overlap=overlap)
    crowded.scheduler.look_ahead = 0
    constraints = [Counting(45) for _ in range(6)]
    for i, constraint in enumerate(constraints):
        crowded.add(constrained(str(i), prompt_of(i), constraint, sampling=sampling))
    events = drain(crowded)
    assert crowded.stats().preemptions > 0
    for i, constraint in enumerate(constraints):
        found = tokens_of(events[str(i)])
        assert in_language(found, 45)
        assert found == wanted[i]
        assert constraint.accepted == found  # nothing was told twice


def test_many_choices_of_one_prompt_are_each_in_the_language(open_tiny):
    engine = open_tiny(max_batch=8)
    for i in range(8):
        sampling = SamplingParams(temperature=2.0, seed=i)
        engine.add(constrained(str(i), prompt_of(0, 70), Counting(3), sampling=sampling))
    events = drain(engine)
    found = [tokens_of(events[str(i)]) for i in range(8)]
    assert all(in_language(tokens, 3) for tokens in found)
    assert len({tuple(tokens) for tokens in found}) > 1
    assert engine.stats().prefix_hit_tokens > 0


def test_without_a_token_to_end_with_the_engine_ends_it(open_tiny):
    engine = open_tiny()
    engine.add(ask("r", prompt_of(1), max_tokens=100, constraint=Counting(3, end=None)))
    found = drain(engine)["r"]
    assert in_language(tokens_of(found), 3, end=None)
    assert len(found) == 6
    assert found[-1].finish is FinishReason.STOP


def test_the_last_token_allowed_may_be_the_last_one_needed(open_tiny):
    engine = open_tiny()
    engine.add(ask("whole", prompt_of(1), max_tokens=6, constraint=Counting(3, end=None)))
    engine.add(constrained("cut", prompt_of(1), Counting(3), max_tokens=5))
    events = drain(engine)
    assert events["whole"][-1].finish is FinishReason.STOP
    assert events["cut"][-1].finish is FinishReason.LENGTH
    assert len(events["cut"]) == 5


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_tokens": 50}])
def test_the_constraint_decides_when_it_ends(open_tiny, options):
    engine = open_tiny()
    engine.add(constrained("r", prompt_of(1), Counting(2), **options))
    found = drain(engine)["r"]
    assert in_language(tokens_of(found), 2)
    assert found[-1].finish is FinishReason.STOP


def test_bias_and_penalties_do_not_lead_out_of_the_language(open_tiny):
    engine = open_tiny()
    rng = random.Random(1)
    sampling = SamplingParams(
        temperature=1.0,
        logit_bias=tuple((rng.randrange(VOCAB), 100.0) for _ in range(30)),
        repetition_penalty=0.3,
        frequency_penalty=-2.0,
    )
    engine.add(constrained("r", prompt_of(1), Counting(8), sampling=sampling))
    assert in_language(tokens_of(drain(engine)["r"]), 8)


def test_logprobs_are_the_models_own(open_tiny):
    sampling = SamplingParams(temperature=0.0, logprobs=3)
    engine = open_tiny()
    engine.add(ask("free", prompt_of(1), max_tokens=1, sampling=sampling))
    engine.add(constrained("held", prompt_of(1), Counting(1), sampling=sampling))
    events = drain(engine)
    free, held = events["free"][0].logprob, events["held"][0].logprob
    assert held.top == free.top
    assert held.logprob <= free.top[0][1]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("at", [0, 3])
def test_a_constraint_that_fails_ends_its_request_alone(open_tiny, way, at, overlap):
    engine = open_tiny(overlap=overlap)
    engine.add(constrained("bad", prompt_of(1), Counting(3, fault_at=at)))
    engine.add(constrained("good", prompt_of(2), Counting(3)))
    events = drain(engine)
    assert in_language(tokens_of(events["good"]), 3)
    assert [type(event) for event in events["bad"]] == [TokenEvent] * at + [RequestFailed]
    assert "broken" in str(events["bad"][-1].error)
    assert engine.stats().kv_blocks_used == 0


def test_a_constraint_that_refuses_what_it_allowed_ends_its_request_alone(open_tiny):
    class Fickle(Counting):
        def accept(self, token: int) -> None:
            raise ValueError("not that one after all")

    engine = open_tiny()
    engine.add(constrained("bad", prompt_of(1), Fickle(3)))
    engine.add(ask("good", prompt_of(2), max_tokens=3))
    events = drain(engine)
    assert isinstance(events["bad"][-1], RequestFailed)
    assert len(events["good"]) == 3


def test_masks_are_made_while_the_model_computes(open_tiny, monkeypatch):
    """And are finished with when the model fails: the constraint is free again."""
    engine = open_tiny()
    constraint = Counting(3)
    engine.add(constrained("r", [5, 6, 7], constraint))
    model = engine._runner.model
    forward = type(model).forward
    seen: list[int] = []

    def watching(self, batch, cache):
        for _ in range(10_000):  # the helper's turn comes while this runs
            if constraint.filled_for:
                break
            np.ones(1000).sum()
        seen.append(len(constraint.filled_for))
        raise RuntimeError("while it computed")

    monkeypatch.setattr(type(model), "forward", watching)
    with pytest.raises(RuntimeError, match="while it computed"):
        engine.step()
    assert seen == [1]
    monkeypatch.setattr(type(model), "forward", forward)
    assert in_language(tokens_of(drain(engine)["r"]), 3)
