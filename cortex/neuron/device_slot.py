"""A device with its thread and its ledger, and the choice among several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from cortex.errors import BadRequest, DeviceLost
from cortex.neuron.device_thread import DeviceThread
from cortex.neuron.ledger import Ledger
from cortex.wire import neuron as wire

FreeBytes = Callable[[int], int | None]  # device index -> what the device says is free


@attrs.define(eq=False)
class DeviceSlot:
    """One device of this host."""

    device: wire.Device
    thread: DeviceThread
    ledger: Ledger

    @property
    def index(self) -> int:
        return self.device.index

    @property
    def torch_name(self) -> str:
        """What torch calls it."""
        return "cpu" if self.device.kind == "cpu" else f"cuda:{self.index}"


def thread_name(device: wire.Device) -> str:
    """``cpu-dev-0``, ``cuda-dev-1``: at most the 15 characters an OS thread name has."""
    return f"{device.kind}-dev-{device.index}"


def candidates(slots: Sequence[DeviceSlot], wanted: tuple[int, ...] | None) -> list[DeviceSlot]:
    """The working devices among *wanted* (None: all). `BadRequest` when one does not exist."""
    indices = {slot.index for slot in slots}
    for index in wanted or ():
        if index not in indices:
            known = ", ".join(str(i) for i in sorted(indices))
            raise BadRequest(f"there is no device {index}; this host has {known}", param="devices")
    if wanted == ():
        raise BadRequest("devices must name at least one device", param="devices")
    chosen = [slot for slot in slots if wanted is None or slot.index in wanted]
    working = [slot for slot in chosen if slot.thread.fault is None]
    if not working:
        raise DeviceLost("the device has faulted and is being recovered")
    return working


def freest(slots: Sequence[DeviceSlot], free: FreeBytes) -> tuple[DeviceSlot, int]:
    """The slot with the most memory for a new model, and how many bytes that is."""
    room = [(slot.ledger.available(free(slot.index)), -slot.index, slot) for slot in slots]
    available, _, slot = max(room, key=lambda entry: entry[:2])
    return slot, available
