"""Keeps the fleet up to date: one task a neuron, so that a slow one delays no other.

The tasks follow the fleet's configuration: a node that is added is watched from then on, one that
is removed no more, and one that is reached elsewhere now is looked at anew.
"""

from __future__ import annotations

import attrs
import trio

from cortex.config.gateway import OPENAI, NeuronNode
from cortex.errors import CortexError
from cortex.gateway import foreign
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import MISSES_ALLOWED, Fleet
from cortex.gateway.membership import same_place
from cortex.service import logs
from cortex.service.poll import Cadence, poll
from cortex.wire import neuron as wire

POLL_SECONDS = 8.0  # for one look; each read has a shorter bound of its own
FIRST_LOOK_SECONDS = 1.0  # a neuron that is down must not keep the gateway from listening
LOADING_PACE = 2  # looks at a node that loads a model, for each at another one
BACK_OFF_CEILING = 15.0  # a neuron that restarts should be back soon after it listens

log = logs.get("gateway.poller")


@attrs.frozen
class _PollCadence(Cadence):
    """Backs off only once a node is unhealthy: before that, looking again is what decides."""

    def pause(self, failures: int, spread: float) -> float:
        return super().pause(max(0, failures - MISSES_ALLOWED), spread)


@attrs.define(eq=False)
class _Watcher:
    """The task that looks at one node; its end is its own affair."""

    neuron: NeuronNode
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    looked: trio.Event = attrs.field(factory=trio.Event)  # once
    wake: trio.Event = attrs.field(factory=trio.Event)  # replaced by each look
    described: int | None = None  # the spell in which the node was asked what it is


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
        self._watchers: dict[str, _Watcher] = {}

    def retune(self, interval: float) -> None:
        """Ask every *interval* seconds, from the next pause on."""
        self._cadence = attrs.evolve(self._cadence, interval=interval)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Poll until cancelled. Started once every node was looked at, or has had time to be."""
        async with trio.open_nursery() as nursery:
            self._follow(nursery)
            with trio.move_on_after(FIRST_LOOK_SECONDS):
                for watcher in tuple(self._watchers.values()):
                    await watcher.looked.wait()
            task_status.started()
            while True:
                self._follow(nursery)
                await self._fleet.wait_configured()

    def probe_now(self, name: str) -> None:
        """Look at the node at once; during a look, once more right after it."""
        watcher = self._watchers.get(name)
        if watcher is not None:  # else it was removed, or its first look is about to begin
            watcher.wake.set()

    def _follow(self, nursery: trio.Nursery) -> None:
        """Have a watcher for each node as it is configured now, and no others."""
        neurons = {neuron.name: neuron for neuron in self._fleet.neurons()}
        for name, watcher in tuple(self._watchers.items()):
            neuron = neurons.get(name)
            if neuron is None or not same_place(watcher.neuron, neuron):
                watcher.scope.cancel("the node is configured otherwise")
                del self._watchers[name]
            elif watcher.neuron != neuron:
                watcher.neuron = neuron
                watcher.wake.set()  # with its new token, say
        for name, neuron in neurons.items():
            if name not in self._watchers:
                self._watchers[name] = _Watcher(neuron)
                nursery.start_soon(self._watch, self._watchers[name], name=f"poll {name}")

    async def _watch(self, watcher: _Watcher) -> None:
        name = watcher.neuron.name
        was_healthy: bool | None = None
        problem = ""

        async def probe() -> bool:
            nonlocal problem
            watcher.wake = trio.Event()  # what is asked for from here on needs another look
            problem = ""
            try:
                with trio.fail_after(POLL_SECONDS):
                    await self._look(watcher)
            except CortexError as exc:
                problem = exc.message
                raise
            except trio.TooSlowError:
                problem = f"no answer within {POLL_SECONDS:g} s"
                raise
            return True

        def publish(seen: bool | None) -> None:
            nonlocal was_healthy
            if not self._current(watcher):
                return
            if seen is None:
                self._fleet.missed(name, problem)
            healthy = self._fleet.node(name).healthy
            if healthy != was_healthy:
                self._tell(name, healthy, problem)
            was_healthy = healthy
            watcher.looked.set()

        with watcher.scope:
            await poll(
                probe,
                publish,
                weather=(CortexError, trio.TooSlowError),
                cadence=lambda: self._cadence_of(watcher.neuron),
                wake=lambda: watcher.wake,
            )

    async def _look(self, watcher: _Watcher) -> None:
        name = watcher.neuron.name
        asked_at = trio.current_time()
        if watcher.neuron.kind == OPENAI:
            listed = await self._control.foreign_models(name)
            health = foreign.health_of(watcher.neuron, listed)
            self._fleet.polled(name, listed, health, asked_at=asked_at)
            return
        health = await self._control.health(name)
        models = await self._control.models(name)
        self._fleet.polled(name, models, health, asked_at=asked_at)
        spell = self._fleet.node(name).spell
        if watcher.described != spell:
            discovery = await self._control.discovery(name)
            version = await self._version(name, discovery)
            if self._current(watcher):
                self._fleet.described(name, discovery, version)
                watcher.described = spell

    def _cadence_of(self, neuron: NeuronNode) -> Cadence:
        """Quicker while something is being loaded there: somebody watches how far it is."""
        interval = neuron.poll_seconds or self._cadence.interval
        models = self._fleet.node(neuron.name).models
        if any(model.status == wire.LOADING for model in models):
            interval /= LOADING_PACE
        if interval == self._cadence.interval:
            return self._cadence
        return attrs.evolve(self._cadence, interval=interval)

    def _current(self, watcher: _Watcher) -> bool:
        """Whether what *watcher* sees is still the node's; it may have moved since."""
        try:
            return same_place(watcher.neuron, self._fleet.neuron(watcher.neuron.name))
        except KeyError:
            return False

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
