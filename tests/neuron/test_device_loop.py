"""The loop by itself: no trio, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NoReturn

import attrs
import pytest
from fakes.engine import FakeDeviceFault, FakeEngine, is_fake_fault, request
from fakes.jobs import every_kind, kinds, make

from cortex.errors import DeviceLost, DeviceOutOfMemory, LoadCancelled
from cortex.neuron.device_loop import DeviceLoop
from cortex.neuron.jobs import (
    Abort,
    Add,
    Answer,
    Call,
    Close,
    Died,
    Faulted,
    Job,
    Open,
    OpenedEngine,
    Output,
    Stats,
    Stepped,
    Stop,
)


class WouldBlock(Exception):
    """The loop was idle and waited for a job."""


@attrs.define(eq=False)
class Bench:
    """A loop with a list for an inbox."""

    jobs: deque[Job] = attrs.field(factory=deque)
    batches: list[list[Output]] = attrs.field(factory=list)
    loop: DeviceLoop = attrs.field(init=False)
    now: float = 0.0
    freed: int = 0
    free_error: Exception | None = None

    def __attrs_post_init__(self) -> None:
        self.loop = DeviceLoop(
            "dev", self, self.batches.append, is_fake_fault, lambda: self.now, self._free
        )

    def _free(self) -> None:
        self.freed += 1
        if self.free_error is not None:
            raise self.free_error

    def take(self, *, wait: bool) -> Job | None:
        if self.jobs:
            return self.jobs.popleft()
        if wait:
            raise WouldBlock
        return None

    def do(self, *jobs: Job) -> list[Output]:
        """One turn with *jobs*; its outputs."""
        self.jobs.extend(jobs)
        before = len(self.batches)
        self.loop.turn()
        return [output for batch in self.batches[before:] for output in batch]

    def open(self, key: int, engine: FakeEngine) -> None:
        (answer,) = self.do(Open(key, lambda progress, cancelled: engine))
        assert isinstance(answer, Answer)
        assert answer.error is None

    def outputs(self) -> list[Output]:
        return [output for batch in self.batches for output in batch]


def answers(outputs: list[Output]) -> dict[Job, Answer]:
    return {output.job: output for output in outputs if isinstance(output, Answer)}


def raising(error: Exception) -> Callable[[], None]:
    def fn() -> None:
        raise error

    return fn


def untouched(*_: object) -> NoReturn:
    pytest.fail("a faulted or stopped device was touched")


def test_opening_tells_what_was_measured() -> None:
    bench = Bench()
    job = Open(1, lambda progress, cancelled: FakeEngine(max_context=77))
    (answer,) = bench.do(job)
    assert isinstance(answer, Answer)
    assert answer.job is job
    assert answer.value == OpenedEngine(77, 8 << 20, 4 << 20, 4 << 20)


def test_an_idle_loop_waits_for_a_job_instead_of_spinning() -> None:
    bench = Bench()
    bench.open(1, FakeEngine())
    with pytest.raises(WouldBlock):
        bench.loop.turn()


def test_jobs_are_answered_in_order_with_their_own_failures() -> None:
    bench = Bench()
    error = ValueError("this one")
    jobs: list[Job] = [Call(lambda: 1), Call(raising(error)), Call(lambda: 3), Stats(9)]
    got = bench.do(*jobs)
    assert [o.job for o in got if isinstance(o, Answer)] == jobs
    by_job = answers(got)
    assert by_job[jobs[0]].value == 1
    assert by_job[jobs[1]].error is error
    assert by_job[jobs[2]].value == 3
    assert isinstance(by_job[jobs[3]].error, DeviceLost)


def test_a_turn_sends_its_answers_and_its_step_at_once() -> None:
    bench = Bench()
    bench.open(1, FakeEngine())
    before = len(bench.batches)
    got = bench.do(Add(1, request("a")), Add(1, request("b")))
    assert len(bench.batches) == before + 1
    (stepped,) = (o for o in got if isinstance(o, Stepped))
    assert [event.request_id for event in stepped.events] == ["a", "b"]
    assert stepped.stats.running == 2


def test_engines_take_turns() -> None:
    bench = Bench()
    engines = {1: FakeEngine(), 2: FakeEngine(), 3: FakeEngine()}
    for key, engine in engines.items():
        bench.open(key, engine)
    bench.do(*(Add(key, request(f"r{key}", max_tokens=4)) for key in (1, 3)))
    for _ in range(7):
        bench.loop.turn()
    order = [o.key for o in bench.outputs() if isinstance(o, Stepped) and o.events]
    assert order in ([1, 3] * 4, [3, 1] * 4)


def test_a_cancelled_job_is_answered_without_being_done() -> None:
    bench = Bench()
    engine = FakeEngine()
    bench.open(1, engine)
    job = Add(1, request("a"))
    job.cancelled = True
    assert isinstance(answers(bench.do(job))[job].error, LoadCancelled)
    assert engine.running == {}


def test_an_abort_publishes_how_the_engine_stands() -> None:
    bench = Bench()
    bench.open(1, FakeEngine())
    bench.do(Add(1, request("a", max_tokens=50)))
    got = bench.do(Abort(1, "a"))
    (stepped,) = (o for o in got if isinstance(o, Stepped))
    assert stepped.stats.running == 0


def test_closing_what_is_not_open_is_no_error() -> None:
    bench = Bench()
    job = Close(4)
    assert answers(bench.do(job))[job].value is False


@pytest.mark.parametrize("source", ["step", "open", "call", "add"])
def test_a_device_fault_turns_the_loop_drain_only(source: str) -> None:
    bench = Bench()
    engine = FakeEngine()
    bench.open(1, engine)
    fault = RuntimeError("outer")
    fault.__cause__ = FakeDeviceFault("sticky")
    bench.do(Add(1, request("a", max_tokens=50)))
    cause: Job | None = None
    if source == "step":
        engine.step_error = fault
        got = bench.do()
    elif source == "open":
        cause = Open(2, lambda progress, cancelled: raising(fault)())  # type: ignore[arg-type,return-value]
        got = bench.do(cause)
    elif source == "call":
        cause = Call(raising(fault))
        got = bench.do(cause)
    else:
        engine.add = lambda request: raising(fault)()  # type: ignore[method-assign]
        cause = Add(1, request("b"))
        got = bench.do(cause)
    assert [o.error for o in got if isinstance(o, Faulted)] == [fault]
    if cause is not None:
        assert isinstance(answers(got)[cause].error, DeviceLost)
    history = list(engine.history)
    jobs = every_kind(untouched)
    replies = answers(bench.do(*jobs))
    assert all(isinstance(replies[job].error, DeviceLost) for job in jobs)
    bench.jobs.append(stop := Stop())
    bench.loop.run()
    assert stop in answers(bench.outputs())
    assert engine.history == history  # not even closed
    assert not engine.closed


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_each_kind_of_job_may_be_the_one_that_faults(kind: type[Job], when: str) -> None:
    """It is answered, and so are those of every kind that wait before or come after it."""
    bench = Bench()
    fault = FakeDeviceFault("sticky")
    engine = FakeEngine()
    bench.open(1, engine)
    bench.do(Add(1, request("a", max_tokens=50)))

    def broken(*_: object) -> NoReturn:
        raise fault

    for method in ("add", "abort", "step", "stats", "close"):
        setattr(engine, method, broken)
    jobs = [make(kind, broken), *every_kind(untouched)]
    if when == "before":  # they wait behind it in the same turn
        got = bench.do(*jobs)
    else:
        got = bench.do(jobs[0])
        got += bench.do(*jobs[1:])
    replies = answers(got)
    assert {type(replies[job].error) for job in jobs} == {DeviceLost}
    assert [o.error for o in got if isinstance(o, Faulted)] == [fault]


def test_a_faulted_loop_is_idle() -> None:
    bench = Bench()
    engine = FakeEngine()
    bench.open(1, engine)
    bench.do(Add(1, request("a", max_tokens=50)))
    engine.step_error = FakeDeviceFault("gone")
    bench.do()
    with pytest.raises(WouldBlock):
        bench.loop.turn()


def test_an_engine_that_fails_by_itself_dies_alone() -> None:
    bench = Bench()
    broken, well = FakeEngine(), FakeEngine()
    bench.open(1, broken)
    bench.open(2, well)
    broken.step_error = DeviceOutOfMemory("no room")
    bench.do(Add(1, request("a")), Add(2, request("b")))
    bench.loop.turn()
    died = [o for o in bench.outputs() if isinstance(o, Died)]
    assert [(o.key, type(o.error)) for o in died] == [(1, DeviceOutOfMemory)]
    assert broken.closed
    assert well.steps == 1
    assert not any(isinstance(o, Faulted) for o in bench.outputs())


def test_stop_closes_engines_and_answers_what_is_left() -> None:
    bench = Bench()
    engine = FakeEngine()
    bench.open(1, engine)
    late = every_kind(untouched)
    bench.jobs.extend([Stop(), *late])
    bench.loop.run()
    assert engine.closed
    replies = answers(bench.outputs())
    assert all(isinstance(replies[job].error, DeviceLost) for job in late)


def test_a_load_serves_other_engines_between_its_shards() -> None:
    bench = Bench()
    other, loaded = FakeEngine(), FakeEngine()
    bench.open(1, other)
    added = Add(1, request("a", max_tokens=3))
    closing = Close(1)
    seen: list[int] = []

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        bench.jobs.extend([added, closing])
        for _ in range(3):
            bench.now += 1
            assert not cancelled()
            seen.append(other.steps)
        return loaded

    opening = Open(2, load)
    got = bench.do(opening)
    assert seen == [1, 2, 3]
    order = [o.job for o in got if isinstance(o, Answer)]
    assert order == [added, opening, closing]  # what is no request keeps its place
    assert other.closed


def test_a_load_has_at_least_half_of_the_time() -> None:
    bench = Bench()
    other = FakeEngine()
    bench.open(1, other)
    bench.do(Add(1, request("a", max_tokens=500)))

    def slow_step() -> list[object]:
        bench.now += 10
        other.steps += 1
        return []

    other.step = slow_step  # type: ignore[method-assign,assignment]
    before = other.steps

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        for _ in range(100):
            bench.now += 1
            cancelled()
        return FakeEngine()

    bench.do(Open(2, load))
    assert 8 <= other.steps - before <= 12


def test_a_fault_between_shards_ends_the_load_too() -> None:
    bench = Bench()
    other = FakeEngine()
    bench.open(1, other)
    other.step_error = FakeDeviceFault("gone")
    bench.jobs.append(Add(1, request("a")))

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        bench.jobs.append(Add(1, request("b")))
        if cancelled():
            raise LoadCancelled
        return pytest.fail("went on after the fault")

    opening = Open(2, load)
    bench.jobs.clear()
    got = bench.do(opening)
    assert isinstance(answers(got)[opening].error, DeviceLost)
    assert sum(isinstance(o, Faulted) for o in got) == 1


def test_a_load_cancelled_at_its_very_end_leaves_nothing_open() -> None:
    bench = Bench()
    engine = FakeEngine()

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        opening.cancelled = True
        return engine

    opening = Open(1, load)
    got = bench.do(opening)
    assert isinstance(answers(got)[opening].error, LoadCancelled)
    assert engine.closed
    with pytest.raises(WouldBlock):
        bench.loop.turn()


def test_memory_is_given_back_whenever_an_engine_goes() -> None:
    bench = Bench()
    bench.open(1, FakeEngine())
    assert bench.freed == 0
    bench.do(Close(1))
    assert bench.freed == 1
    bench.do(Open(2, lambda progress, cancelled: raising(DeviceOutOfMemory("full"))()))  # type: ignore[arg-type,return-value]
    assert bench.freed == 2
    bench.open(3, FakeEngine(step_error=ValueError("a bug")))
    bench.do(Add(3, request("a")))
    assert bench.freed == 3


@pytest.mark.parametrize("faults", [True, False])
def test_giving_memory_back_may_fail(faults: bool) -> None:
    bench = Bench(free_error=FakeDeviceFault("gone") if faults else ValueError("odd"))
    bench.open(1, FakeEngine())
    job = Close(1)
    got = bench.do(job)
    assert answers(got)[job].value is True
    assert any(isinstance(o, Faulted) for o in got) is faults


def test_errors_keep_no_frame_and_so_no_tensor_alive() -> None:
    bench = Bench()

    class Tensor:
        pass

    def load() -> None:
        tensor = Tensor()
        raise ValueError("shape") from RuntimeError(str(tensor))

    job = Call(load)
    error = answers(bench.do(job))[job].error
    assert error is not None
    traceback = error.__traceback__
    while traceback is not None:
        assert not any(isinstance(v, Tensor) for v in traceback.tb_frame.f_locals.values())
        traceback = traceback.tb_next
