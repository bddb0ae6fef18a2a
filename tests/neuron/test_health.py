"""Looking at devices, with a probe that may say anything, or nothing."""

from __future__ import annotations

import threading

import trio
import trio.testing
from fakes.nvml import FakeProbe

from cortex.neuron.health import HealthMonitor
from cortex.wire import neuron as wire

DEVICES = (wire.Device(0, "a"), wire.Device(1, "b"))
WELL = (wire.DeviceHealth(0, 1, 2), wire.DeviceHealth(1, 3, 4))


def monitor(probe: FakeProbe, **options: float) -> tuple[HealthMonitor, list[tuple[int, str]]]:
    lost: list[tuple[int, str]] = []
    return HealthMonitor(
        probe, DEVICES, lambda index, why: lost.append((index, why)), **options
    ), lost


async def test_it_knows_nothing_before_it_has_looked() -> None:
    health, _ = monitor(FakeProbe([WELL]))
    assert health.devices == (wire.DeviceHealth(0), wire.DeviceHealth(1))
    assert health.free_bytes(0) is None


async def test_it_is_ready_after_its_first_look_and_goes_on() -> None:
    probe = FakeProbe([WELL, (wire.DeviceHealth(0, 9, 9), WELL[1])])
    health, lost = monitor(probe, interval=0.01)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(health.run)
            assert health.devices == WELL
            assert health.free_bytes(1) == 4 << 20
            while health.devices == WELL:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert lost == []


async def test_a_lost_device_is_reported_once_and_stays_lost() -> None:
    gone = wire.DeviceHealth(1, ok=False, reason="GPU is lost")
    health, lost = monitor(FakeProbe([WELL, (WELL[0], gone), (WELL[0], gone), WELL]))
    for _ in range(4):
        await health.look()
    assert lost == [(1, "GPU is lost")]
    assert health.devices[0] == WELL[0]
    assert (health.devices[1].ok, health.devices[1].reason) == (False, "GPU is lost")


async def test_a_device_missing_from_a_reading_is_lost() -> None:
    health, lost = monitor(FakeProbe([WELL[:1]]))
    await health.look()
    assert lost == [(1, "the device has disappeared")]


async def test_a_probe_that_hangs_is_bounded_and_has_one_thread() -> None:
    gate = threading.Event()
    threads: list[int] = []

    def hang() -> None:
        threads.append(threading.get_ident())
        assert gate.wait(10)

    probe = FakeProbe([WELL], before=hang)
    health, lost = monitor(probe, bound=0.02)
    try:
        with trio.fail_after(10):
            for _ in range(2):
                await health.look()
            assert all(device.ok and device.reason for device in health.devices)
            assert health.free_bytes(0) is None  # an old figure would be a lie
            await health.look()
        assert not any(device.ok for device in health.devices)
        assert len(threads) == 1
        assert lost == []  # a silent driver is no reason to replace the process
    finally:
        gate.set()
    with trio.fail_after(10):
        while health.devices != WELL:
            await health.look()
