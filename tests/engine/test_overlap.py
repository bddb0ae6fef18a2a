"""Steps that begin before the one before is known give the same tokens as steps in turn."""

from __future__ import annotations

import random

import pytest
from fakes.requests import ask, drain, tokens_of

from cortex.engine.engine import Engine
from cortex.engine.request import FinishReason, SamplingParams


def work(engine: Engine, count: int = 9) -> dict[str, list[object]]:
    """Requests of many kinds side by side: what they were told, logprobs and ends included."""
    rng = random.Random(7)
    for number in range(count):
        prompt = [rng.randrange(97) for _ in range(rng.choice((1, 5, 31, 32, 33, 64, 90)))]
        sampling = (
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=1.5, seed=number, top_k=20),
            SamplingParams(temperature=1.0, seed=number, repetition_penalty=1.3, logprobs=2),
            SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=True),
        )[number % 4]
        engine.add(
            ask(
                str(number),
                prompt,
                max_tokens=rng.choice((1, 2, 12, 40)),
                min_tokens=number % 3,
                stop_ids=frozenset({3, 50, 51, 52}),
                sampling=sampling,
            )
        )
    return drain(engine)


@pytest.mark.parametrize("blocks", [None, 5])
def test_the_events_are_those_of_steps_in_turn(open_tiny, blocks):
    inturn, overlapped = open_tiny(blocks=blocks), open_tiny(blocks=blocks, overlap=True)
    inturn.scheduler.look_ahead = overlapped.scheduler.look_ahead = 0  # so that some are preempted
    wanted, found = work(inturn), work(overlapped)
    assert set(found) == set(wanted)
    for number in wanted:
        for one, other in zip(wanted[number], found[number], strict=True):
            assert (one.token, one.finish) == (other.token, other.finish)
            if one.logprob is None:
                assert other.logprob is None
            else:
                assert other.logprob.logprob == pytest.approx(one.logprob.logprob, abs=1e-4)
    if blocks is not None:
        assert overlapped.stats().preemptions > 0
    assert overlapped.stats().generated_tokens == inturn.stats().generated_tokens
    assert overlapped.stats().kv_blocks_used == 0


def test_a_step_is_given_to_the_device_before_the_last_one_is_looked_at(open_tiny, monkeypatch):
    engine = open_tiny(overlap=True)
    order: list[str] = []
    launch = engine._runner.launch
    monkeypatch.setattr(
        engine._runner, "launch", lambda plan: (order.append("launch"), launch(plan))[1]
    )
    engine.add(ask("r", [1, 2, 3], max_tokens=3))
    told = []
    while engine.has_work:
        told.append([event.token for event in engine.step()])
    assert [len(tokens) for tokens in told] == [0, 1, 1, 1]
    assert len(order) == 3  # no step for a sequence whose last token is under way


def test_a_stop_costs_a_row_of_the_next_step_and_tells_nothing_more(open_tiny):
    plain = open_tiny()
    plain.add(ask("r", [5, 6, 7], max_tokens=12))
    tokens = tokens_of(drain(plain)["r"])
    engine = open_tiny(overlap=True)
    engine.add(ask("r", [5, 6, 7], max_tokens=12, stop_ids=frozenset({tokens[4]})))
    events = drain(engine)["r"]
    assert tokens_of(events) == tokens[: tokens.index(tokens[4]) + 1]
    assert events[-1].finish is FinishReason.STOP
    assert not engine.has_work
    assert engine.stats().kv_blocks_used == 0


def test_an_abort_while_its_step_is_under_way_yields_no_event(open_tiny):
    engine = open_tiny(overlap=True)
    engine.add(ask("gone", [1, 2], max_tokens=20))
    engine.add(ask("stays", [3, 4], max_tokens=6))
    engine.step()
    engine.step()
    assert engine.abort("gone")
    events = drain(engine)
    assert "gone" not in events
    alone = open_tiny()
    alone.add(ask("stays", [3, 4], max_tokens=6))
    # The first token came before the abort.
    assert tokens_of(events["stays"]) == tokens_of(drain(alone)["stays"])[1:]
    assert engine.stats().kv_blocks_used == 0


def test_blocks_that_fill_with_a_token_under_way_are_found_later(open_tiny):
    prompt = list(range(20))
    engine = open_tiny(overlap=True)
    engine.add(ask("one", prompt, max_tokens=30))
    told = tokens_of(drain(engine)["one"])
    engine.add(ask("two", [*prompt, *told[:20]], max_tokens=10))
    events = drain(engine)["two"]
    assert events[0].first.cached_tokens == 32
    plain = open_tiny()
    plain.add(ask("two", [*prompt, *told[:20]], max_tokens=10))
    assert tokens_of(events) == tokens_of(drain(plain)["two"])
