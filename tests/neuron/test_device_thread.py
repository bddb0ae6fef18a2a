"""The thread and the handle together, with real threads and real time."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing
from fakes.engine import FakeDeviceFault, FakeEngine, is_fake_fault, request
from fakes.jobs import every_kind

from cortex.engine.request import TokenEvent
from cortex.errors import (
    ContextLengthExceeded,
    DeviceLost,
    InternalError,
    LoadCancelled,
    Unavailable,
)
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.engine_handle import EngineHandle, EventStream
from cortex.neuron.jobs import Call, Close, Open, OpenedEngine, Stats

BOUND = 20.0  # seconds a test may take at most; none takes one


@asynccontextmanager
async def running(thread: DeviceThread) -> AsyncIterator[trio.Nursery]:
    """*thread* at work; it ends with the block."""
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.run)
            yield nursery
            nursery.cancel_scope.cancel()


def device(**options: object) -> DeviceThread:
    return DeviceThread("fake-dev-0", is_fault=is_fake_fault, **options)  # type: ignore[arg-type]


async def open_engine(thread: DeviceThread, engine: FakeEngine, key: int = 1) -> EngineHandle:
    facts: OpenedEngine = await thread.ask(Open(key, lambda progress, cancelled: engine))
    return EngineHandle(thread, key, facts)


async def read_all(handle: EngineHandle, name: str, max_tokens: int = 3) -> list[int]:
    tokens: list[int] = []
    async with handle.stream(request(name, max_tokens=max_tokens)) as stream:
        async for events in stream:
            for event in events:
                assert isinstance(event, TokenEvent)
                assert event.request_id == name
                tokens.append(event.token)
    return tokens


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads run until *condition* holds; bounded by the test's own bound."""
    while not condition():
        await trio.sleep(0.001)


async def read_to_end(stream: EventStream) -> int:
    """How many events came; raises what the stream ended with."""
    return sum([len(events) async for events in stream])


async def test_it_is_one_thread_for_life_with_its_name() -> None:
    thread = device()
    seen: list[tuple[str, int, str]] = []

    def look() -> None:
        current = threading.current_thread()
        os_name = Path(f"/proc/self/task/{current.native_id}/comm")
        name = os_name.read_text().strip() if os_name.exists() else current.name
        seen.append((current.name, threading.get_ident(), name))

    async with running(thread):
        engine = FakeEngine()
        handle = await open_engine(thread, engine)
        for _ in range(3):
            await thread.ask(Call(look))
            await read_all(handle, "a")
    assert {name for name, _, _ in seen} == {"fake-dev-0"}
    assert {name for _, _, name in seen} == {"fake-dev-0"}
    assert len({ident for _, ident, _ in seen}) == 1
    assert engine.threads == {"fake-dev-0"}  # opened, driven and closed there
    assert engine.closed


async def test_prepare_runs_first_on_the_thread() -> None:
    names: list[str] = []
    thread = device(prepare=lambda: names.append(threading.current_thread().name))
    async with running(thread):
        await thread.ask(Call(lambda: names.append("job")))
    assert names == ["fake-dev-0", "job"]


async def test_jobs_are_answered_in_order() -> None:
    thread = device()
    order: list[int] = []
    async with running(thread):
        for number in range(50):
            thread.submit(Call(lambda n=number: n), lambda value, error: order.append(value))
        await thread.ask(Call(lambda: None))
    assert order == list(range(50))


async def test_a_jobs_failure_is_its_callers_alone() -> None:
    thread = device()

    def fail() -> None:
        raise ValueError("mine")

    async with running(thread):
        with pytest.raises(ValueError, match="mine"):
            await thread.ask(Call(fail))
        assert await thread.ask(Call(lambda: 7)) == 7


async def test_a_cancelled_caller_leaves_at_once_and_its_job_still_runs() -> None:
    thread = device()
    gate, ran = threading.Event(), threading.Event()

    def job() -> None:
        assert gate.wait(BOUND)
        ran.set()

    async with running(thread):
        with trio.move_on_after(0.01) as scope:
            await thread.ask(Call(job))
        assert scope.cancelled_caught
        assert not ran.is_set()
        gate.set()
        assert await thread.ask(Call(lambda: 1)) == 1
        assert ran.is_set()


@pytest.mark.parametrize("cancel_when_left", [True, False])
async def test_a_load_is_told_to_stop_only_when_its_caller_says_so(cancel_when_left: bool) -> None:
    thread = device()
    leave = threading.Event()
    engine = FakeEngine()

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        assert leave.wait(BOUND)
        if cancelled():
            raise LoadCancelled
        return engine

    async with running(thread):
        with trio.move_on_after(0.01):
            await thread.ask(Open(1, load), cancel_when_left=cancel_when_left)
        leave.set()
        closed: bool = await thread.ask(Close(1))
        assert closed is not cancel_when_left


async def test_one_wake_up_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = device()
    wake_ups: list[int] = []
    receive = DeviceThread._receive

    def counting(self: DeviceThread, outputs: list[object]) -> None:
        wake_ups.append(len(outputs))
        receive(self, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceThread, "_receive", counting)
    async with running(thread):
        engine = FakeEngine(gate=threading.Event())
        handle = await open_engine(thread, engine)
        async with trio.open_nursery() as nursery:
            for name in "abcdefgh":
                nursery.start_soon(read_all, handle, name, 20)
            await until(lambda: len(handle._streams) == 8)
            wake_ups.clear()
            assert engine.gate is not None
            engine.gate.set()
        assert engine.steps in (20, 21)  # the first may have been made for fewer of them
        assert len(wake_ups) == engine.steps


async def test_an_idle_thread_sleeps() -> None:
    thread = device()
    async with running(thread):
        await open_engine(thread, FakeEngine())
        used: list[float] = [await thread.ask(Call(_thread_seconds))]
        await trio.sleep(0.1)
        used.append(await thread.ask(Call(_thread_seconds)))
    assert used[1] - used[0] < 0.05


def _thread_seconds() -> float:
    import time

    return time.thread_time()


async def test_a_stream_brings_every_token_and_then_ends() -> None:
    thread = device()
    async with running(thread):
        handle = await open_engine(thread, FakeEngine())
        assert await read_all(handle, "a", 5) == [1, 2, 3, 1, 2]
        stats = handle.stats()
        assert stats is not None
        assert (stats.steps, stats.running) == (5, 0)


async def test_two_engines_of_a_device_serve_at_once() -> None:
    thread = device()
    async with running(thread):
        first = await open_engine(thread, FakeEngine(), 1)
        second = await open_engine(thread, FakeEngine(), 2)
        async with first.stream(request("a", max_tokens=900)) as stream:
            assert await read_all(second, "a") == [1, 2, 3]
            assert await stream.receive()


async def test_leaving_a_stream_aborts_it_at_once() -> None:
    thread = device()
    async with running(thread):
        engine = FakeEngine(gate=threading.Event())
        handle = await open_engine(thread, engine)
        with trio.CancelScope() as scope:
            async with handle.stream(request("a", max_tokens=900)):
                await until(engine.in_step.is_set)
                scope.cancel()
        # We are here although the device is in the middle of a step.
        assert engine.gate is not None
        assert not engine.gate.is_set()
        engine.gate.set()
        await until(lambda: "abort a" in engine.history)
        assert engine.running == {}
        assert engine.steps == 1


async def test_a_stream_left_before_its_request_was_taken_never_starts() -> None:
    thread = device()
    gate = threading.Event()
    async with running(thread):
        engine = FakeEngine()
        handle = await open_engine(thread, engine)
        thread.submit(Call(lambda: gate.wait(BOUND)))
        async with handle.stream(request("a")):
            pass
        gate.set()
        await thread.ask(Call(lambda: None))
        assert "add a" not in engine.history


async def test_an_ended_stream_is_not_aborted() -> None:
    thread = device()
    async with running(thread):
        engine = FakeEngine()
        handle = await open_engine(thread, engine)
        await read_all(handle, "a")
        await thread.ask(Call(lambda: None))
        assert "abort a" not in engine.history


async def test_a_slow_reader_keeps_nobody_waiting() -> None:
    thread = device()
    async with running(thread):
        handle = await open_engine(thread, FakeEngine())
        async with handle.stream(request("slow", max_tokens=200)) as slow:
            assert len(await read_all(handle, "quick", 300)) == 300
            got = [event async for events in slow for event in events]
            assert len(got) == 200


async def test_a_prompt_beyond_the_context_is_refused_with_the_numbers() -> None:
    thread = device()
    async with running(thread):
        handle = await open_engine(thread, FakeEngine(max_context=3))
        with pytest.raises(ContextLengthExceeded) as caught:
            async with handle.stream(request("a")):
                pytest.fail("it was taken")
        assert caught.value.extras["prompt_tokens"] == 3
        assert caught.value.extras["context"] == 3


async def test_what_the_engine_refuses_is_raised_to_the_reader() -> None:
    thread = device()
    async with running(thread):
        engine = FakeEngine()
        handle = await open_engine(thread, engine)
        engine.running["a"] = (request("a", max_tokens=900), 0)
        async with handle.stream(request("a")) as stream:
            with pytest.raises(InternalError) as caught:
                await read_to_end(stream)
        assert isinstance(caught.value.__cause__, ValueError)


async def test_an_id_in_use_is_refused() -> None:
    thread = device()
    async with running(thread):
        handle = await open_engine(thread, FakeEngine(gate=threading.Event()))
        async with handle.stream(request("a")):
            with pytest.raises(InternalError):
                async with handle.stream(request("a")):
                    pytest.fail("two streams of one id")
            handle_engine_goes_on = handle.stats()
        assert handle_engine_goes_on is None


async def test_a_device_fault_reaches_every_stream_and_every_job() -> None:
    thread = device()
    faults: list[Exception] = []
    thread.on_fault = faults.append
    async with running(thread):
        engine = FakeEngine(gate=threading.Event())
        handle = await open_engine(thread, engine)
        fault = FakeDeviceFault("illegal address")
        engine.step_error = fault
        async with (
            handle.stream(request("a")) as first,
            handle.stream(request("b")) as second,
            trio.open_nursery() as nursery,
        ):
            await until(engine.in_step.is_set)

            async def waits() -> None:
                with pytest.raises(DeviceLost):
                    await thread.ask(Stats(1))

            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            assert engine.gate is not None
            engine.gate.set()
            for stream in (first, second):
                with pytest.raises(DeviceLost) as caught:
                    await stream.receive()
                assert caught.value.retry_after == 20.0
        assert faults == [fault]
        assert thread.fault is fault
        with pytest.raises(DeviceLost):
            async with handle.stream(request("c")):
                pytest.fail("served by a faulted device")
        for job in every_kind(_untouched):
            with pytest.raises(DeviceLost):
                await thread.ask(job)
    assert not engine.closed


def _untouched(*_: object) -> NoReturn:
    pytest.fail("a faulted or stopped device was touched")


async def test_tokens_from_before_a_fault_are_delivered_before_it() -> None:
    thread = device()
    async with running(thread):
        engine = FakeEngine(max_context=10**9)  # it must not have ended before it faults
        handle = await open_engine(thread, engine)
        async with handle.stream(request("a", max_tokens=10**8)) as stream:
            await until(lambda: engine.steps >= 3)
            engine.step_error = FakeDeviceFault("gone")
            await until(lambda: thread.fault is not None)
            for _ in range(engine.steps):
                assert len(await stream.receive()) == 1
            with pytest.raises(DeviceLost):
                await stream.receive()


async def test_a_device_declared_lost_answers_although_its_thread_is_stuck() -> None:
    thread = device(grace=0.05)
    gate = threading.Event()
    try:
        async with running(thread):
            engine = FakeEngine()
            handle = await open_engine(thread, engine)
            async with trio.open_nursery() as nursery:

                async def waits() -> None:
                    with pytest.raises(DeviceLost):
                        await thread.ask(Call(lambda: gate.wait(BOUND)))

                nursery.start_soon(waits)
                await trio.testing.wait_all_tasks_blocked()
                thread.declare_lost(RuntimeError("fallen off the bus"))
            with pytest.raises(DeviceLost):
                async with handle.stream(request("a")):
                    pytest.fail("served by a lost device")
        # And the thread that would not end did not keep the block from ending.
        assert not gate.is_set()
    finally:
        gate.set()


async def test_an_engines_own_failure_ends_its_streams_alone() -> None:
    thread = device()
    async with running(thread):
        broken = FakeEngine(step_error=ValueError("a bug"))
        died: list[Exception] = []
        handle = await open_engine(thread, broken, 1)
        handle.on_died = died.append
        other = await open_engine(thread, FakeEngine(), 2)
        async with handle.stream(request("a")) as stream:
            with pytest.raises(InternalError):
                await stream.receive()
        assert [str(error) for error in died] == ["a bug"]
        assert broken.closed
        assert await read_all(other, "b") == [1, 2, 3]


async def test_closing_a_handle_ends_its_streams_with_the_reason() -> None:
    thread = device()
    async with running(thread):
        engine = FakeEngine()
        handle = await open_engine(thread, engine)
        async with handle.stream(request("a", max_tokens=900)) as stream:
            await handle.close(Unavailable("unloaded"))
            assert engine.closed
            with pytest.raises(Unavailable, match="unloaded"):
                await read_to_end(stream)


async def test_shutdown_answers_queued_jobs_and_later_ones() -> None:
    thread = device()
    gate = threading.Event()
    errors: list[Exception | None] = []
    engine = FakeEngine()
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.run)
            handle = await open_engine(thread, engine)
            thread.submit(Call(lambda: gate.wait(BOUND)))
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                for job in every_kind(_untouched):
                    thread.submit(job, lambda _, error: errors.append(error))
                gate.set()
    for job in every_kind(_untouched):
        thread.submit(job, lambda _, error: errors.append(error))
    assert len(errors) == 2 * len(every_kind(_untouched))
    assert all(isinstance(error, DeviceLost) for error in errors)
    assert engine.closed
    with pytest.raises(DeviceLost):
        async with handle.stream(request("a")):
            pytest.fail("served after the end")


async def test_shutdown_stops_a_load_at_its_next_shard() -> None:
    thread = device()
    shards = 0
    loading = threading.Event()

    def load(progress: object, cancelled: Callable[[], bool]) -> FakeEngine:
        nonlocal shards
        while not cancelled():
            shards += 1
            loading.set()
        raise LoadCancelled

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.run)
            thread.submit(Open(1, load))
            await until(loading.is_set)
            nursery.cancel_scope.cancel()
    assert shards >= 1


async def test_a_bug_in_the_loop_ends_the_process_instead_of_hanging_it() -> None:
    thread = device(prepare=lambda: 1 // 0)
    with trio.fail_after(BOUND), pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.run)
            with pytest.raises(DeviceLost), trio.CancelScope(shield=True):
                await thread.ask(Call(lambda: 1))
