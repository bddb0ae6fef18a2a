"""Embeddings out of the engine: the plain forward pass's, whatever runs beside them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from fakes.decoding import hidden_states
from fakes.requests import ask, drain, embed, tokens_of

from cortex.engine.engine import Engine
from cortex.engine.pooling import RunningPool
from cortex.engine.request import Embedded, Pooling, Request, RequestFailed, SamplingParams

BOTH = [Pooling.LAST, Pooling.MEAN]


def prompts() -> list[list[int]]:
    """Of many lengths, the last two with a long common prefix."""
    rng = random.Random(3)
    found = [[rng.randrange(97) for _ in range(n)] for n in (1, 2, 31, 32, 33, 64, 100)]
    return [*found, [*found[-1][:70], 4, 5]]


def oracle(directory: Path, prompt: list[int], pooling: Pooling) -> np.ndarray:
    states = hidden_states(directory, prompt)
    pooled = states[-1] if pooling is Pooling.LAST else states.mean(0)
    return pooled.numpy()


def vector_of(events: list[object]) -> np.ndarray:
    (event,) = events
    assert isinstance(event, Embedded)
    assert event.vector.dtype == np.float32
    return event.vector


def embed_all(engine: Engine, pooling: Pooling) -> list[np.ndarray]:
    for i, prompt in enumerate(prompts()):
        engine.add(embed(str(i), prompt, pooling))
    events = drain(engine)
    return [vector_of(events[str(i)]) for i in range(len(prompts()))]


@pytest.mark.parametrize("pooling", BOTH)
@pytest.mark.parametrize("budget", [1, 7, 33, 512])
@pytest.mark.parametrize("overlap", [False, True])
def test_chunks_and_company_change_nothing(open_tiny, tiny, pooling, budget, overlap):
    engine = open_tiny(max_batch=min(budget, 5), max_batch_tokens=budget, overlap=overlap)
    for prompt, vector in zip(prompts(), embed_all(engine, pooling), strict=True):
        assert vector == pytest.approx(oracle(tiny, prompt, pooling), abs=2e-4)


def test_the_last_token_may_use_cached_blocks_and_the_mean_may_not(open_tiny, tiny):
    engine = open_tiny()
    for pooling in BOTH:
        embed_all(engine, pooling)
    prompt = prompts()[6]
    found = {}
    for pooling in BOTH:
        engine.add(embed("r", prompt, pooling))
        (event,) = drain(engine)["r"]
        found[pooling] = event.cached_tokens
        assert event.vector == pytest.approx(oracle(tiny, prompt, pooling), abs=2e-4)
    assert found == {Pooling.LAST: 96, Pooling.MEAN: 0}


def test_completions_beside_embeddings_are_what_they_are_alone(open_tiny, tiny):
    alone = open_tiny()
    sampling = SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=True)
    asked = [
        ask("plain", prompts()[4], max_tokens=30),
        ask("scored", prompts()[5], max_tokens=9, sampling=sampling),
    ]
    for request in asked:
        alone.add(request)
    wanted = drain(alone)
    engine = open_tiny(max_batch=6, max_batch_tokens=20)
    for i, prompt in enumerate(prompts()):
        engine.add(embed(f"e{i}", prompt, BOTH[i % 2]))
        if i < 2:
            engine.add(asked[i])
    events = drain(engine)
    for name in ("plain", "scored"):
        assert tokens_of(events[name]) == tokens_of(wanted[name])
    theirs, ours = wanted["scored"], events["scored"]
    assert [e.logprob.logprob for e in ours] == pytest.approx(
        [e.logprob.logprob for e in theirs], abs=1e-4
    )
    assert [e.logprob for e in ours[0].first.prompt_logprobs[1:]] == pytest.approx(
        [e.logprob for e in theirs[0].first.prompt_logprobs[1:]], abs=1e-4
    )
    for i, prompt in enumerate(prompts()):
        assert vector_of(events[f"e{i}"]) == pytest.approx(
            oracle(tiny, prompt, BOTH[i % 2]), abs=2e-4
        )


@pytest.mark.parametrize("pooling", BOTH)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_preempted_prompt_is_pooled_once(open_tiny, tiny, pooling, overlap):
    """Completions that grow take the blocks of an embedding that is half done."""
    engine = open_tiny(blocks=8, max_batch=4, max_batch_tokens=4, overlap=overlap)
    engine.scheduler.look_ahead = 0
    for i in range(3):
        engine.add(ask(f"c{i}", [i, 5, 9], max_tokens=80))
    while any(s.remaining > 1 for s in engine.scheduler.running) or len(engine.scheduler.waiting):
        engine.step()
    prompt = [(11 * j) % 97 for j in range(90)]
    engine.add(embed("e", prompt, pooling))
    events = drain(engine)
    assert engine.stats().preemptions > 0
    assert vector_of(events["e"]) == pytest.approx(oracle(tiny, prompt, pooling), abs=2e-4)


def test_a_prompt_may_fill_the_context_and_no_more(open_tiny, tiny):
    engine = open_tiny(context=100)
    prompt = [(7 * j) % 97 for j in range(100)]
    engine.add(embed("e", prompt, Pooling.LAST))
    assert vector_of(drain(engine)["e"]) == pytest.approx(
        oracle(tiny, prompt, Pooling.LAST), abs=2e-4
    )
    with pytest.raises(ValueError, match="101 tokens"):
        engine.add(embed("e", [*prompt, 1], Pooling.LAST))


def test_nothing_is_drawn_and_nothing_counts_as_generated(open_tiny):
    engine = open_tiny()
    embed_all(engine, Pooling.LAST)
    stats = engine.stats()
    assert stats.generated_tokens == 0
    assert stats.prompt_tokens == sum(map(len, prompts()))
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


@pytest.mark.parametrize("pooling", BOTH)
def test_an_embedding_that_is_not_finite_fails_alone(open_tiny, monkeypatch, pooling):
    engine = open_tiny()
    good, forward = prompts()[3], engine._runner.model.forward

    def broken(batch, cache):
        hidden = forward(batch, cache).clone()
        first = 0
        for chunk in batch.chunks:
            if chunk.sequence.id == "bad":
                hidden[first + chunk.count - 1] = float("nan")
            first += chunk.count
        return hidden

    monkeypatch.setattr(engine._runner.model, "forward", broken)
    engine.add(embed("bad", prompts()[4], pooling))
    engine.add(embed("good", good, pooling))
    engine.add(ask("text", good, max_tokens=3))
    events = drain(engine)
    (failed,) = events["bad"]
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, ArithmeticError)
    assert np.isfinite(vector_of(events["good"])).all()
    assert len(events["text"]) == 3
    assert engine.stats().kv_blocks_used == 0


def test_a_step_that_failed_is_not_pooled_twice(open_tiny, tiny, monkeypatch):
    engine = open_tiny(max_batch=2, max_batch_tokens=16)
    prompt = prompts()[5]
    engine.add(embed("e", prompt, Pooling.MEAN))
    engine.step()
    forward = engine._runner.model.forward

    def failing(batch, cache):
        forward(batch, cache)
        raise RuntimeError("once")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner.model, "forward", failing)
        with pytest.raises(RuntimeError, match="once"):
            engine.step()
    assert vector_of(drain(engine)["e"]) == pytest.approx(
        oracle(tiny, prompt, Pooling.MEAN), abs=2e-4
    )


def test_an_embedding_can_be_aborted_half_way(open_tiny):
    engine = open_tiny(max_batch=2, max_batch_tokens=16)
    engine.add(embed("e", prompts()[6], Pooling.MEAN))
    engine.step()
    assert engine.abort("e")
    assert not engine.has_work
    assert engine.stats().kv_blocks_used == 0


def test_bf16_is_near_fp32(open_tiny):
    vectors = [embed_all(open_tiny(dtype=dtype), Pooling.MEAN) for dtype in ("float32", "bfloat16")]
    for exact, rounded in zip(*vectors, strict=True):
        cosine = exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)
        assert cosine > 0.995


def test_what_is_too_large_for_fp32_is_not_finite():
    pool = RunningPool()
    pool.add(np.array([1e300, 1.0]), 0)
    assert not np.isfinite(pool.vector(Pooling.LAST, 1)).all()
    pool.add(np.array([3.0, 1.0]), 0)
    pool.add(np.array([1.0, 1.0]), 7)
    assert pool.vector(Pooling.MEAN, 2).tolist() == [2.0, 1.0]


def test_resumed_tokens_are_part_of_the_prompt():
    with pytest.raises(ValueError, match="resumed"):
        Request("r", (1, 2), SamplingParams(), 1, resumed=3)


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_completion_that_is_carried_on_is_penalised_as_one(open_tiny, penalty):
    """Cut anywhere and begun again with what it said, it goes on as it would have."""
    sampling = SamplingParams(temperature=0.8, seed=11, **{penalty: 1.5})
    engine = open_tiny()
    engine.add(ask("whole", prompts()[2], sampling=sampling, max_tokens=24))
    whole = tokens_of(drain(engine)["whole"])
    engine.add(ask("rest", prompts()[2] + whole[:10], sampling=sampling, max_tokens=14, resumed=10))
    assert tokens_of(drain(engine)["rest"]) == whole[10:]
    engine.add(ask("anew", prompts()[2] + whole[:10], sampling=sampling, max_tokens=14))
    assert tokens_of(drain(engine)["anew"]) != whole[10:]
