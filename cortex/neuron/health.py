"""How the devices are, looked at again and again; a device that is gone is reported once."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from cortex.neuron.devices import DeviceProbe
from cortex.service import logs
from cortex.wire import neuron as wire

log = logs.get("neuron.health")

INTERVAL = 5.0
# NVML hangs when a driver does; its answer normally takes some milliseconds.
BOUND = 4.0
SILENT_POLLS = 3  # polls in a row without an answer, until a device counts as not well

OnLost = Callable[[int, str], None]


def _ignore(_: int, __: str) -> None:
    pass


@attrs.define(eq=False)
class HealthMonitor:
    """Publishes `DeviceHealth` of *devices*; *on_lost* gets index and reason of a lost device."""

    _probe: DeviceProbe
    _devices: tuple[wire.Device, ...]
    on_lost: OnLost = _ignore
    _interval: float = INTERVAL
    _bound: float = BOUND
    _snapshot: tuple[wire.DeviceHealth, ...] = attrs.field(init=False)
    _lost: dict[int, str] = attrs.field(factory=dict, init=False)
    _silent: int = attrs.field(default=0, init=False)
    # One thread at most: while a read hangs no further one is started.
    _limiter: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(1), init=False
    )

    def __attrs_post_init__(self) -> None:
        self._snapshot = tuple(wire.DeviceHealth(index=device.index) for device in self._devices)

    @property
    def devices(self) -> tuple[wire.DeviceHealth, ...]:
        """The last reading of every device."""
        return self._snapshot

    def free_bytes(self, index: int) -> int | None:
        """What the device said is free; None when it has not said."""
        for device in self._snapshot:
            if device.index == index and device.vram_free_mb is not None:
                return device.vram_free_mb << 20
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look now, report ready, and go on looking until cancelled."""
        await self.look()
        task_status.started()
        while True:
            await trio.sleep(self._interval)
            await self.look()

    async def look(self) -> None:
        """Read once, within the bound."""
        if not self._devices:
            return
        with trio.move_on_after(self._bound):
            reading = await trio.to_thread.run_sync(
                self._probe.health, abandon_on_cancel=True, limiter=self._limiter
            )
            self._silent = 0
            self._publish(reading)
            return
        self._silent += 1
        log.warning("no answer from the devices", seconds=self._bound, times=self._silent)
        well = self._silent < SILENT_POLLS
        reason = f"no answer for {self._silent} polls"
        self._snapshot = tuple(
            wire.DeviceHealth(
                index=device.index,
                ok=well and device.index not in self._lost,
                reason=self._lost.get(device.index, reason),
            )
            for device in self._devices
        )

    def _publish(self, reading: tuple[wire.DeviceHealth, ...]) -> None:
        seen = {device.index: device for device in reading}
        snapshot: list[wire.DeviceHealth] = []
        for device in self._devices:
            health = seen.get(
                device.index,
                wire.DeviceHealth(device.index, ok=False, reason="the device has disappeared"),
            )
            if device.index in self._lost:  # for this process it stays lost, even if it came back
                health = attrs.evolve(health, ok=False, reason=self._lost[device.index])
            snapshot.append(health)
        self._snapshot = tuple(snapshot)
        for health in self._snapshot:
            if not health.ok and health.index not in self._lost:
                reason = health.reason or "lost"
                self._lost[health.index] = reason
                log.error("device lost", device=health.index, reason=reason)
                self.on_lost(health.index, reason)
