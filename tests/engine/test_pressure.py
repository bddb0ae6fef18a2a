"""An engine that is short of memory, or asked more than it can do in time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes.requests import ask, drain, tokens_of

from cortex.engine import runner as runner_module
from cortex.engine.engine import Engine
from cortex.engine.request import RequestFailed
from cortex.engine.runner import InFlight
from cortex.engine.scheduler import Plan
from cortex.engine.throttle import LIMIT
from cortex.errors import DeviceOutOfMemory, Overloaded

PROMPTS = [[(11 * i + j) % 97 for j in range(20 + 9 * i)] for i in range(6)]


def out_of_memory_when(engine: Engine, short: Callable[[Plan], bool]) -> list[int]:
    """Let *engine*'s steps run out of memory when *short*; the sizes of those that did."""
    runner = engine._runner
    assert runner is not None
    run, failed = runner.launch, list[int]()

    def running(plan: Plan) -> InFlight:
        if short(plan):
            failed.append(plan.tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(plan)

    runner.launch = running  # type: ignore[method-assign]
    return failed


def answers(engine: Engine) -> list[list[int]]:
    for i, prompt in enumerate(PROMPTS):
        engine.add(ask(str(i), prompt, max_tokens=10))
    events = drain(engine)
    return [tokens_of(events[str(i)]) for i in range(len(PROMPTS))]


@pytest.fixture
def expected(open_tiny) -> list[list[int]]:
    return answers(open_tiny())


@pytest.mark.parametrize("room", [100, 17, 4, 1])
def test_what_does_not_fit_is_done_in_smaller_steps(open_tiny, expected, room):
    engine = open_tiny(max_batch=6, max_batch_tokens=256)
    failed = out_of_memory_when(engine, lambda plan: plan.tokens > room)
    assert answers(engine) == expected
    assert engine.stats().out_of_memory == len(failed) > 0
    assert max(failed) <= 256
    assert engine.scheduler.pool.used == 0


@pytest.mark.parametrize("room", [20, 1])
def test_neither_is_a_step_lost_that_overlaps_one_that_failed(open_tiny, expected, room):
    engine = open_tiny(max_batch=6, max_batch_tokens=256, overlap=True)
    failed = out_of_memory_when(engine, lambda plan: plan.tokens > room)
    assert answers(engine) == expected
    assert len(failed) > 0


def test_a_step_that_fails_when_it_has_drawn_already_is_drawn_again(
    open_tiny, expected, monkeypatch
):
    engine = open_tiny(max_batch=6, max_batch_tokens=256, overlap=True)
    calls = 0
    score = runner_module.score

    def scoring(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(*arguments)

    monkeypatch.setattr(runner_module, "score", scoring)
    assert answers(engine) == expected
    assert engine.stats().out_of_memory == calls // 3


def test_steps_become_large_again(open_tiny, expected):
    engine = open_tiny(max_batch=6, max_batch_tokens=256)
    once = [True]
    failed = out_of_memory_when(engine, lambda plan: bool(once and once.pop()))
    engine.add(ask("long", PROMPTS[0], max_tokens=200))
    engine.step()
    assert engine._throttle.budget == failed[0] // 2
    drain(engine)
    assert engine._throttle.budget > failed[0] // 2
    assert answers(engine) == expected
    assert len(failed) == 1


def test_a_request_that_cannot_go_on_fails_alone_and_says_why(open_tiny, expected):
    engine = open_tiny(max_batch=6, max_batch_tokens=256)
    out_of_memory_when(engine, lambda plan: any(c.sequence.id == "2" for c in plan.chunks))
    for i, prompt in enumerate(PROMPTS):
        engine.add(ask(str(i), prompt, max_tokens=10))
    events = drain(engine)
    (failure,) = events.pop("2")
    assert isinstance(failure, RequestFailed)
    assert isinstance(failure.error, DeviceOutOfMemory)
    assert failure.error.retry_after is not None
    assert isinstance(failure.error.__cause__, torch.OutOfMemoryError)
    assert {name: tokens_of(got) for name, got in events.items()} == {
        str(i): expected[i] for i in range(len(PROMPTS)) if i != 2
    }
    assert engine.scheduler.pool.used == 0


def test_an_engine_that_can_do_nothing_any_more_gives_up(open_tiny):
    engine = open_tiny(max_batch=4, max_batch_tokens=8)
    failed = out_of_memory_when(engine, lambda plan: True)
    for i in range(40):
        engine.add(ask(str(i), [1, 2, 3]))
    with pytest.raises(DeviceOutOfMemory) as caught:
        drain(engine)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert len(failed) == LIMIT
    engine.close()
    assert engine.scheduler.pool.used == 0


def test_the_tensors_of_the_failed_step_are_gone_before_memory_is_asked_for_again(open_tiny):
    engine = open_tiny()
    runner = engine._runner
    assert runner is not None
    run, reclaim = runner.launch, runner.reclaim
    alive: list[weakref.ref[torch.Tensor]] = []
    seen: list[bool] = []

    def running(plan: Plan) -> InFlight:
        runner.launch = run  # type: ignore[method-assign]
        activations = torch.zeros(10)
        alive.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("full")

    def reclaiming() -> None:
        seen.append(alive[0]() is None)
        reclaim()

    runner.launch, runner.reclaim = running, reclaiming  # type: ignore[method-assign]
    engine.add(ask("a", [1, 2, 3]))
    assert len(drain(engine)["a"]) == 8
    assert seen == [True]


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: unknown"), ValueError("out of memory")]
)
def test_other_failures_of_a_step_are_the_engines(open_tiny, error):
    engine = open_tiny()
    runner = engine._runner
    assert runner is not None

    def failing(plan: Plan) -> InFlight:
        raise error

    runner.launch = failing  # type: ignore[method-assign]
    engine.add(ask("a", [1, 2, 3]))
    with pytest.raises(type(error)):
        engine.step()
    assert engine.stats().out_of_memory == 0


# Time


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_waits_too_long_fails_with_the_numbers_and_the_others_go_on(open_tiny):
    clock = Clock()
    engine = open_tiny(blocks=4, max_batch=4, queue_seconds=120.0, clock=clock)
    engine.add(ask("runs", range(60), max_tokens=60))
    engine.step()
    clock.now = 5.0
    engine.add(ask("waits", range(10, 80), max_tokens=30))
    clock.now = 20.0
    engine.add(ask("later", range(20, 90), max_tokens=30))
    clock.now = 124.0
    assert [event.request_id for event in engine.step()] == ["runs"]
    clock.now = 125.0
    (_, failure) = engine.step()
    assert isinstance(failure, RequestFailed)
    assert failure.request_id == "waits"
    assert isinstance(failure.error, Overloaded)
    assert failure.error.extras == {
        "waited_seconds": 120.0,
        "running": 1,
        "waiting": 2,
        "kv_blocks_needed": 3,
        "kv_blocks_free": 2,
    }
    assert failure.error.retry_after == 4.0
    assert engine.stats().expired == 1
    assert engine.stats().waiting == 1
    rest = drain(engine)
    assert {name: len(events) for name, events in rest.items()} == {"runs": 57, "later": 30}
    assert not engine.abort("waits")


def test_who_runs_or_was_preempted_is_not_late(open_tiny):
    clock = Clock()
    engine = open_tiny(blocks=4, max_batch=2, queue_seconds=10.0, clock=clock)
    engine.scheduler.look_ahead = 0
    for name, salt in (("a", b"a"), ("b", b"b")):
        engine.add(ask(name, range(60), max_tokens=40, salt=salt))
    engine.step()
    clock.now = 1000.0
    events = drain(engine)
    assert engine.stats().preemptions > 0
    assert {name: len(got) for name, got in events.items()} == {"a": 39, "b": 39}


def test_with_no_patience_at_all_what_can_begin_begins(open_tiny):
    engine = open_tiny(max_batch=1, queue_seconds=0.0)
    engine.add(ask("a", [1, 2, 3]))
    engine.add(ask("b", [1, 2, 3]))
    events = drain(engine)
    assert len(events["a"]) == 8
    assert isinstance(events["b"][0], RequestFailed)


def test_who_left_while_waiting_is_not_failed(open_tiny):
    clock = Clock()
    engine = open_tiny(max_batch=1, queue_seconds=10.0, clock=clock)
    engine.add(ask("a", [1, 2, 3], max_tokens=50))
    engine.add(ask("b", [1, 2, 3]))
    engine.step()
    engine.abort("b")
    clock.now = 100.0
    assert [event.request_id for event in engine.step()] == ["a"]
    assert engine.stats().expired == 0
