"""Keeps the fleet up to date: one task a neuron, so that a slow one delays no other."""

from __future__ import annotations

import attrs
import trio

from cortex.errors import CortexError
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import MISSES_ALLOWED, Fleet
from cortex.service import logs
from cortex.service.poll import Cadence, poll
from cortex.wire import neuron as wire

POLL_SECONDS = 8.0  # for one look; each read has a shorter bound of its own
FIRST_LOOK_SECONDS = 1.0  # a neuron that is down must not keep the gateway from listening
BACK_OFF_CEILING = 15.0  # a neuron that restarts should be back soon after it listens

log = logs.get("gateway.poller")


@attrs.frozen
class _PollCadence(Cadence):
    """Backs off only once a node is unhealthy: before that, looking again is what decides."""

    def pause(self, failures: int, spread: float) -> float:
        return super().pause(max(0, failures - MISSES_ALLOWED), spread)


class Poller:
    """Asks every neuron for its models and health, and once in each spell what it is."""

    def __init__(
        self,
        fleet: Fleet,
        control: NeuronControl,
        interval: float,
        *,
        ceiling: float = BACK_OFF_CEILING,
    ) -> None:
        self._fleet = fleet
        self._control = control
        self._cadence = _PollCadence(interval=interval, ceiling=ceiling)
        self._wakes = {node.name: trio.Event() for node in fleet.nodes()}
        self._described: dict[str, int] = {}  # node to the spell it was asked what it is in

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Poll until cancelled. Started once every node was looked at, or has had time to be."""
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(FIRST_LOOK_SECONDS):
                async with trio.open_nursery() as first_looks:
                    for node in self._fleet.nodes():
                        looked = trio.Event()
                        nursery.start_soon(self._watch, node.name, looked, name=f"poll {node.name}")
                        first_looks.start_soon(looked.wait)
            task_status.started()

    def probe_now(self, name: str) -> None:
        """Look at the node at once; during a look, once more right after it."""
        self._wakes[name].set()

    async def _watch(self, name: str, looked: trio.Event) -> None:
        was_healthy: bool | None = None
        problem = ""

        async def probe() -> bool:
            nonlocal problem
            self._wakes[name] = trio.Event()  # what is asked for from here on needs another look
            problem = ""
            try:
                with trio.fail_after(POLL_SECONDS):
                    await self._look(name)
            except CortexError as exc:
                problem = exc.message
                raise
            except trio.TooSlowError:
                problem = f"no answer within {POLL_SECONDS:g} s"
                raise
            return True

        def publish(seen: bool | None) -> None:
            nonlocal was_healthy
            if seen is None:
                self._fleet.missed(name, problem)
            healthy = self._fleet.node(name).healthy
            if healthy != was_healthy:
                self._tell(name, healthy, problem)
            was_healthy = healthy
            looked.set()

        await poll(
            probe,
            publish,
            weather=(CortexError, trio.TooSlowError),
            cadence=self._cadence,
            wake=lambda: self._wakes[name],
        )

    async def _look(self, name: str) -> None:
        asked_at = trio.current_time()
        health = await self._control.health(name)
        models = await self._control.models(name)
        self._fleet.polled(name, models, health, asked_at=asked_at)
        spell = self._fleet.node(name).spell
        if self._described.get(name) != spell:
            discovery = await self._control.discovery(name)
            self._fleet.described(name, discovery, await self._version(name, discovery))
            self._described[name] = spell

    async def _version(self, name: str, discovery: wire.Discovery) -> str | None:
        try:
            return (await self._control.version(name)).version
        except CortexError:
            return discovery.version  # an older neuron has no such route

    def _tell(self, name: str, healthy: bool, problem: str) -> None:
        if healthy:
            log.info("neuron is healthy", node=name)
        else:
            log.warning("neuron is not healthy", node=name, problem=problem)
