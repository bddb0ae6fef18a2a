"""A device's thread that is stuck is told from one that works long."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.engine import FakeEngine, is_fake_fault, request
from fakes.systemd import FakeSystemd

from cortex.neuron.app import _stuck
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.engine_handle import EngineHandle
from cortex.neuron.jobs import Call, Open
from cortex.neuron.pulse import BOUNDS, JOB, LOAD, STEP, Pulse
from cortex.service.notify import Systemd


def device(pulse):
    return DeviceThread("fake-dev-0", is_fault=is_fake_fault, pulse=pulse)


@asynccontextmanager
async def running(thread):
    """*thread* at work; it ends with the block."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def open_engine(thread, engine):
    return EngineHandle(thread, 1, await thread.ask(Open(1, lambda progress, cancelled: engine)))


async def until(condition):
    while not condition():
        await trio.sleep(0.001)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("what", [STEP, JOB, LOAD])
def test_it_is_stuck_when_nothing_takes_as_long(what):
    clock = Clock()
    pulse = Pulse(clock)
    pulse.at(what)
    clock.now = BOUNDS[what]
    assert pulse.stuck() is None
    clock.now += 1
    assert pulse.stuck() == f"in a {what} for {clock.now:.0f} s"
    pulse.at(what)
    assert pulse.stuck() is None


def test_it_may_rest_for_ever():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.at(STEP)
    pulse.rest()
    clock.now = 1e9
    assert pulse.stuck() is None


async def test_an_idle_thread_rests_and_one_in_a_step_that_does_not_return_is_stuck():
    clock, gate = Clock(), threading.Event()
    thread = device(pulse=Pulse(clock))
    async with running(thread):
        engine = FakeEngine(gate=gate)
        handle = await open_engine(thread, engine)
        await until(lambda: thread._pulse._at is None)
        clock.now += 1e6
        assert thread.stuck is None
        async with handle.stream(request("r", max_tokens=1)) as stream:
            await until(engine.in_step.is_set)
            assert thread.stuck is None
            clock.now += BOUNDS[STEP] + 1
            assert thread.stuck is not None
            gate.set()
            async for _ in stream:
                pass
        await thread.ask(Call(lambda: None))
        await until(lambda: thread.stuck is None)


async def test_many_steps_are_not_stuck_however_long_they_take_together():
    clock, seen = Clock(), []
    thread = device(pulse=Pulse(clock))

    class Slow(FakeEngine):
        def step(self):
            clock.now += BOUNDS[STEP] - 1
            seen.append(thread.stuck)
            return super().step()

    async with running(thread):
        handle = await open_engine(thread, Slow())
        async with handle.stream(request("r", max_tokens=20)) as stream:
            async for _ in stream:
                pass
    assert len(seen) >= 20
    assert set(seen) == {None}


async def test_a_load_that_makes_progress_is_not_stuck():
    clock, seen = Clock(), []
    thread = device(pulse=Pulse(clock))

    def load(progress, cancelled):
        for shard in range(5):
            clock.now += BOUNDS[LOAD] - 1
            seen.append(thread.stuck)
            progress("weights", shard, 5)
            cancelled()
        clock.now += BOUNDS[LOAD] + 1
        seen.append(thread.stuck)
        return FakeEngine()

    async with running(thread):
        await thread.ask(Open(1, load))
    assert seen[:5] == [None] * 5
    assert seen[5] == f"in a load for {BOUNDS[LOAD] + 1:.0f} s"


async def test_the_watchdog_hears_nothing_while_a_device_is_stuck():
    clock, gate, begun = Clock(), threading.Event(), threading.Event()
    thread = device(pulse=Pulse(clock))

    class Slot:
        pass

    slot = Slot()
    slot.thread = thread

    def wedged() -> None:
        begun.set()
        gate.wait(20)

    with FakeSystemd() as manager:
        systemd = Systemd(manager.address, 0.02)
        async with running(thread) as nursery:
            nursery.start_soon(systemd.run, lambda: "s", lambda: _stuck([slot]))
            await until(lambda: any("WATCHDOG" in m for m in manager.heard()))
            thread.submit(Call(wedged))
            await until(begun.is_set)
            clock.now += BOUNDS[JOB] + 1
            await until(lambda: systemd._silent)
            manager.heard()
            await trio.sleep(0.1)  # five times what systemd waits for
            assert manager.heard() == []
            gate.set()
            await until(lambda: any("WATCHDOG" in m for m in manager.heard()))


async def test_a_device_that_is_lost_has_an_end_of_its_own():
    clock = Clock()
    thread = device(pulse=Pulse(clock))
    async with running(thread):
        thread._pulse.at(STEP)
        clock.now = 1e6
        assert thread.stuck is not None
        thread.declare_lost(RuntimeError("gone"))
        assert thread.stuck is None
