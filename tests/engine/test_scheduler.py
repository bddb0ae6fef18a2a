"""Laws of the scheduler, under random histories and by example."""

from __future__ import annotations

import pytest
from fakes.scheduling import Machine
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.blocks import BlockPool
from cortex.engine.request import Pooling, SamplingParams
from cortex.engine.scheduler import Scheduler
from cortex.engine.sequence import Sequence

Move = tuple[int, int, int, int]

MACHINES = st.fixed_dictionaries(
    {
        "blocks": st.integers(1, 12),
        "block_size": st.integers(1, 4),
        "max_batch": st.integers(1, 5),
        "max_batch_tokens": st.integers(0, 12),
        "overlap": st.booleans(),
        "look_ahead": st.sampled_from((0, 1, 4, 1000)),
    }
)
MOVES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(1, 12), st.integers(0, 11)),
    max_size=24,
)


def build(shape: dict[str, int]) -> Machine:
    tokens = max(shape["max_batch"], shape["max_batch_tokens"])
    return Machine(**{**shape, "max_batch_tokens": tokens})


def play(machine: Machine, moves: list[Move]) -> None:
    """A history: requests over three tokens (so that prefixes meet), steps and aborts."""
    for kind, length, generate, choice in moves:
        if kind <= 2:
            prompt = tuple((i * (1 + choice % 3)) % 3 for i in range(length + 1))
            machine.add(
                prompt,
                generate,
                caller="abc"[choice % 3],
                priority=choice // 9,
                salt=b"x" if choice == 7 else b"",
                sampling=SamplingParams(temperature=0.0, prompt_logprobs=choice == 5),
                pooling={3: Pooling.LAST, 6: Pooling.MEAN}.get(choice),
            )
        elif kind == 5 and machine.live:
            ids = list(machine.live)
            machine.abort(machine.live[ids[choice % len(ids)]])
        else:
            machine.step()


@settings(max_examples=5000, deadline=None, derandomize=True)
@given(shape=MACHINES, moves=MOVES)
def test_any_history_leaks_nothing_and_starves_nobody(shape: dict[str, int], moves: list[Move]):
    machine = build(shape)
    play(machine, moves)
    left = list(machine.live)
    # One sequence always advances, so the steps to go are bounded by everyone's tokens, each
    # computed again for each of the others that outranks it.
    tokens = sum(sequence.limit for sequence in machine.live.values())
    machine.drain(tokens * (len(left) + 1) + 1)
    machine.drain(2)  # what was under way when the last one ended
    assert set(left) <= set(machine.finished)
    assert machine.pool.used == 0
    assert machine.pool.free == machine.pool.blocks
    assert len(machine.scheduler.waiting) == 0
    if shape["look_ahead"] == 1000:  # everyone's whole completion was reserved
        assert machine.scheduler.preemptions == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shape=MACHINES, moves=MOVES)
def test_the_same_history_gives_the_same_plans(shape: dict[str, int], moves: list[Move]):
    one, two = build(shape), build(shape)
    play(one, moves)
    play(two, moves)
    assert one.trace == two.trace


def machine(**shape: int) -> Machine:
    defaults = {"blocks": 64, "block_size": 4, "max_batch": 8, "max_batch_tokens": 16}
    return Machine(**{**defaults, **shape})


def counts(machine: Machine) -> dict[str, int]:
    return {c.sequence.id: c.count for c in machine.step().chunks}


def test_decode_comes_first_and_a_chunk_of_the_prompt_fills_the_rest():
    m = machine()
    m.add((1, 2), 8)
    m.step()
    m.add(tuple(range(40)), 8)
    assert counts(m) == {"0": 1, "1": 15}
    assert counts(m) == {"0": 1, "1": 15}
    assert counts(m) == {"0": 1, "1": 10}
    assert counts(m) == {"0": 1, "1": 1}


def test_a_prompt_is_admitted_only_when_all_its_blocks_are_there():
    m = machine(blocks=4)
    m.add(tuple(range(8)), 4)
    second = m.add(tuple(range(20, 30)), 1)
    m.step()
    assert second.blocks == []
    m.drain(30)
    assert m.finished == ["0", "1"]
    assert m.scheduler.preemptions == 0


@pytest.mark.parametrize(("look_ahead", "together"), [(9, True), (10, False)])
def test_what_the_running_need_soon_is_not_given_away(look_ahead, together):
    # Each has 2 blocks of 4 tokens, and needs 4 with 9 tokens more, 5 with 10.
    m = machine(blocks=8, max_batch_tokens=32, look_ahead=look_ahead)
    m.add((1,) * 7, 40)
    second = m.add((2,) * 7, 40)
    m.step()
    assert bool(second.blocks) is together


def test_what_lies_beyond_a_limit_is_not_reserved():
    m = machine(blocks=4, max_batch_tokens=32, look_ahead=1000)
    m.add((1,) * 7, 2)
    second = m.add((2,) * 7, 2)
    m.step()
    assert second.blocks
    m.drain(5)
    assert m.scheduler.preemptions == 0


def test_a_smaller_budget_makes_smaller_steps_and_loses_nothing():
    m = machine(max_batch_tokens=16)
    m.add(tuple(range(20)), 4)
    m.scheduler.budget = 3
    assert counts(m) == {"0": 3}
    m.add((1, 2), 4)
    m.scheduler.budget = 1
    assert counts(m) == {"0": 1}
    m.scheduler.budget = 16
    assert counts(m) == {"0": 16}
    m.scheduler.budget = 2
    assert counts(m) == {"0": 1, "1": 1}
    m.drain(20)


def test_when_blocks_run_out_the_newest_is_preempted_and_resumes_from_the_cache():
    m = machine(blocks=6, max_batch_tokens=32, look_ahead=0)
    old = m.add((1,) * 8, 9)
    new = m.add((2,) * 8, 9)
    m.drain(60)
    assert old.preemptions == 0
    assert new.preemptions == 1
    assert m.finished == ["0", "1"]


def test_a_lower_priority_is_preempted_before_a_newer_request():
    m = machine(blocks=6, max_batch_tokens=32, look_ahead=0)
    low = m.add((1,) * 8, 9, priority=0)
    high = m.add((2,) * 8, 9, priority=1)
    m.drain(60)
    assert (low.preemptions, high.preemptions) == (1, 0)


def test_a_shared_prefix_is_computed_once_but_one_token_always_is():
    m = machine()
    prompt = tuple(range(12))
    m.add(prompt, 1)
    m.drain(5)
    again = m.add(prompt, 1)
    m.step()
    assert again.cached_tokens == 8
    assert m.scheduler.prefix_hit_tokens == 8
    assert m.scheduler.prefix_query_tokens == 24


def test_choices_of_one_prompt_cost_one_prefill():
    m = machine()
    prompt = tuple(range(14))
    for _ in range(3):
        m.add(prompt, 4)
    assert counts(m) == {"0": 14}
    assert counts(m) == {"0": 1, "1": 2, "2": 2}


def test_tenants_share_no_prefix():
    m = machine()
    prompt = tuple(range(12))
    m.add(prompt, 1, salt=b"a")
    m.drain(5)
    other = m.add(prompt, 1, salt=b"b")
    m.step()
    assert other.cached_tokens == 0


def test_prompt_logprobs_forgo_the_prefix_cache():
    m = machine()
    prompt = tuple(range(12))
    m.add(prompt, 1)
    m.drain(5)
    scored = m.add(prompt, 1, sampling=SamplingParams(prompt_logprobs=True))
    m.step()
    assert scored.cached_tokens == 0


def test_one_callers_flood_delays_another_by_one_request():
    m = machine(max_batch=1, max_batch_tokens=16)
    for _ in range(5):
        m.add((1, 2, 3), 1, caller="flood")
    m.add((1, 2, 3), 1, caller="other")
    m.drain(20)
    assert m.finished == ["0", "5", "1", "2", "3", "4"]


def test_a_higher_priority_is_admitted_first():
    m = machine(max_batch=1)
    m.add((1, 2), 1)
    m.add((1, 2), 1, priority=1)
    m.drain(10)
    assert m.finished == ["1", "0"]


def test_a_large_request_at_the_head_is_not_overtaken_for_ever():
    m = machine(blocks=4, max_batch=4, max_batch_tokens=16)
    m.add((1, 2, 3), 6)
    large = m.add(tuple(range(15)), 1)
    for _ in range(3):
        m.add((7, 8), 1)
    m.drain(60)
    assert m.finished.index(large.id) == 1


def test_a_plan_that_was_not_carried_out_is_planned_again():
    m = machine()
    m.add(tuple(range(20)), 2)
    dropped = m.scheduler.plan()
    assert [c.count for c in dropped.chunks] == [16]
    assert counts(m) == {"0": 16}
    m.drain(5)


def test_an_abort_frees_the_blocks_at_once_running_or_waiting():
    m = machine(max_batch=1)
    running = m.add(tuple(range(20)), 5)
    waiting = m.add((1,), 5)
    m.step()
    assert m.pool.used == 5
    m.abort(waiting)
    m.abort(running)
    assert m.pool.used == 0
    assert not m.scheduler.has_work


def test_what_is_discarded_is_found_by_nobody():
    m = machine()
    prompt = tuple(range(12))
    bad = m.add(prompt, 5)
    m.step()
    blocks = list(bad.blocks)
    assert m.scheduler.discard(m.live.pop(bad.id)) == blocks
    m.check()
    assert m.pool.cached == 0


def test_a_budget_below_one_token_a_sequence_is_refused():
    with pytest.raises(ValueError, match="budget"):
        Scheduler(BlockPool(1, 1), max_batch=2, max_batch_tokens=1)


def test_a_sequence_ends_at_its_limit_or_at_a_stop_id_past_the_minimum():
    m = machine()
    sequence = m.add((1, 2), 3)
    assert isinstance(sequence, Sequence)
    m.drain(10)
    assert sequence.generated == 3
