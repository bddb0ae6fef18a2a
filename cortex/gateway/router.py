"""From a name to a lease on a ready replica.

Loaded and servable replicas come first: the one where the request's session was served, within
bounds, else the least busy (`affinity`). A replica that recovers, loads or unloads is waited for
rather than doubled; one that is handed over to another model takes no new requests. Only then is
the model loaded, once for all who ask. Every wait ends after ``load_wait_seconds``; whoever is
cancelled in one leaves nothing behind, and the load goes on.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import attrs
import trio

from cortex.config.gateway import OPENAI, EvictionSettings, GatewaySettings, NeuronNode
from cortex.errors import (
    Conflict,
    CortexError,
    ModelNotFound,
    Unavailable,
    UpstreamError,
)
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.chooser import Chooser
from cortex.gateway.circuits import Attempt
from cortex.gateway.control import NeuronControl
from cortex.gateway.endpoints import Endpoints
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.idle import IdleUnloader
from cortex.gateway.load_progress import LoadProgress, impaired_error, not_loadable
from cortex.gateway.loads import Loads
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.pins import Pins
from cortex.gateway.placement import loads_nowhere, may_serve
from cortex.gateway.planner import NO_NODE_RETRY
from cortex.gateway.poller import Poller
from cortex.service import logs
from cortex.wire import neuron as wire

LOOK_AGAIN_SECONDS = 2.0  # a poll takes milliseconds, or the node is in trouble

log = logs.get("gateway.router")


@attrs.frozen
class Foreign:
    """A server of another make: how it is configured, and what it calls the model."""

    neuron: NeuronNode
    model: str


@attrs.frozen
class Lease:
    """A replica to send one request to, counted as in flight while the lease is held."""

    node: str
    endpoint: str  # base URL without a trailing slash
    token: str | None = attrs.field(repr=False)
    model: str
    requested: str
    cold_start: bool  # the request has waited for a load
    load_seconds: float  # how long
    attempt: Attempt | None = attrs.field(default=None, eq=False, repr=False)
    foreign: Foreign | None = None  # for a server of another make


@attrs.frozen
class Wait:
    """The model is on its way; ``state`` says how, for the message when patience ends."""

    state: str


class Load:
    """No replica will come by itself."""


class Router:
    """Gives leases. What is known is the fleet's, what is being loaded the loads'."""

    def __init__(
        self,
        names: ModelNames,
        fleet: Fleet,
        control: NeuronControl,
        poller: Poller,
        metrics: GatewayMetrics,
        settings: GatewaySettings,
        eviction: EvictionSettings,
        nursery: trio.Nursery,
        pins: Pins | None = None,
        events: EventLog | None = None,
    ) -> None:
        """Loads run in *nursery*, which outlives every request."""
        self._nursery = nursery
        self._names = names
        self._fleet = fleet
        self._poller = poller
        pins = Pins() if pins is None else pins
        self._loads = Loads(
            nursery, fleet, control, poller, metrics, names, eviction, pins=pins, events=events
        )
        self._idle = IdleUnloader(names, fleet, self._loads, eviction, pins)
        self._progress = LoadProgress(names, fleet, self._loads)
        self._endpoints = Endpoints(fleet, control, poller)
        self._chooser = Chooser(fleet, events)
        self._settings = settings  # may be live: never keep a value

    @asynccontextmanager
    async def route(
        self, name: str, *, exclude: frozenset[str] = frozenset(), affinity: str | None = None
    ) -> AsyncIterator[Lease]:
        """Hold a lease on a replica of *name* that is on none of the nodes in *exclude*.

        *affinity* is the key of the session that the request belongs to. Waits for a load where one
        is needed. Raises `ModelNotFound`, `ModelLoading` (patience has ended), `LoadFailed`,
        `NoFeasibleNode`, `NoHealthyNode`, `Unavailable`, and `UpstreamError` when all replicas
        there are have been excluded or cannot say where they are reached.
        """
        resolved = self._names.resolve(name)
        started_at = trio.current_time()
        waited = False
        doubted: set[str] = set()
        while True:
            step = self._next(resolved, exclude, affinity)
            if isinstance(step, Replica):
                node = step.node.name
                with self._fleet.hold(node, resolved.model):
                    endpoint = await self._endpoints.of(step)
                    if endpoint is not None:
                        self._chooser.served(step, affinity)
                        seconds = trio.current_time() - started_at if waited else 0.0
                        with self._chooser.attempt(step.node) as attempt:
                            neuron = self._fleet.neuron(node)
                            yield Lease(
                                node=node,
                                endpoint=endpoint,
                                token=neuron.token,
                                model=resolved.model,
                                requested=name,
                                cold_start=waited,
                                load_seconds=seconds,
                                attempt=attempt,
                                foreign=_foreign(neuron, step.model),
                            )
                        return
                if node in doubted or self._fleet.node(node).suspect:
                    exclude |= {node}
                doubted.add(node)  # it may have lost the model, and be told to load it again
                continue
            waited = True
            await self._make_progress(resolved, step, started_at + self._settings.load_wait_seconds)

    async def lease_to_look(self, replica: Replica) -> Lease | None:
        """A lease on *replica* that is no use of it: nothing counts as in flight, keeps it loaded
        or speaks for or against its node. None when its node cannot say where it is reached."""
        endpoint = await self._endpoints.of(replica)
        if endpoint is None:
            return None
        node, model = replica.node.name, replica.model
        neuron = self._fleet.neuron(node)
        return Lease(
            node=node,
            endpoint=endpoint,
            token=neuron.token,
            model=model.id,
            requested=model.id,
            cold_start=False,
            load_seconds=0.0,
            foreign=_foreign(neuron, model),
        )

    def refused(self, lease: Lease) -> None:
        """The lease's connection was refused or reset before the first byte."""
        log.warning("connection refused or reset", node=lease.node, model=lease.model)
        self.failed(lease, "connection refused or reset")
        self._fleet.suspect(lease.node, "connection refused or reset")
        self._poller.probe_now(lease.node)

    def answered(self, lease: Lease) -> None:
        """The node took the lease's request, or said what is wrong with it."""
        if lease.attempt is not None:
            lease.attempt.succeeded()

    def failed(self, lease: Lease, why: str) -> None:
        """The node failed the lease's request, before or within its answer."""
        if lease.attempt is not None:
            lease.attempt.failed(why)

    def turned_away(self, lease: Lease, retry_after: float | None) -> None:
        """The node had no room for the lease's request; *retry_after* (seconds) is its word.

        A server of another make is taken at it, as providers count who asks too often. A neuron's
        queue frees at any time.
        """
        if lease.foreign is not None and retry_after:
            self._chooser.rest(lease.node, retry_after)

    def not_loaded(self, lease: Lease) -> None:
        """The neuron answered 404 for the lease's model."""
        log.warning("model is not where it was thought", node=lease.node, model=lease.model)
        self._fleet.gone(lease.node, lease.model)
        self._loads.unloaded(lease.node, lease.model)
        self._poller.probe_now(lease.node)

    async def look_again(self, lease: Lease) -> None:
        """As `not_loaded`; returns once the neuron has been looked at again, or has had time to be.
        At once where another replica may take the request."""
        self.not_loaded(lease)
        with trio.move_on_after(LOOK_AGAIN_SECONDS):
            while True:
                ready = [each for each in self._fleet.replicas(lease.model) if each.servable]
                seen = self._fleet.settled(lease.node, lease.model)
                away = not self._fleet.node(lease.node).healthy
                if seen or away or any(each.node.serving for each in ready):
                    return
                await self._fleet.wait_changed()

    def loading(self, name: str) -> dict[str, Any] | None:
        """What `LoadProgress.of` tells of a load of *name*."""
        return self._progress.of(name)

    async def load(self, name: str, node: str | None = None) -> str:
        """An operator's load of *name*, also of a model no catalogue lists; the node that has it.

        A model that is loaded (on *node*, if given) is a success. `ModelLoading` when it takes
        longer than ``load_wait_seconds``; the load goes on. `ModelNotFound` for an unknown node.
        """
        resolved = self._to_load(name)
        self._check_node(node)
        for replica in self._allowed(resolved):
            if node in (None, replica.node.name) and replica.node.serving and replica.servable:
                return replica.node.name
        with trio.move_on_after(self._settings.load_wait_seconds):
            return await self._loads.load(resolved, node)
        raise self._progress.too_long(resolved)

    def start_load(self, name: str, node: str | None = None) -> None:
        """As `load`, without waiting for it: a failure is seen in the log and the events only."""
        self._to_load(name)
        self._check_node(node)
        self._nursery.start_soon(self._load_alone, name, node, name=f"load {name}")

    async def _load_alone(self, name: str, node: str | None) -> None:
        try:
            await self.load(name, node)
        except CortexError as exc:
            log.error("a load that was ordered failed", exc=exc, model=name, node=node)

    def loaded_by_us(self) -> frozenset[tuple[str, str]]:
        """Pairs of node and model that this gateway has loaded."""
        return self._loads.loaded_by_us()

    def is_pinned(self, node: str, model: str) -> bool:
        return self._idle.is_pinned(node, model)

    def expires_in(self, node: str, model: str) -> float | None:
        """In how many seconds *model* is unloaded if nobody uses it; None when it stays."""
        return self._idle.expires_in(node, model)

    async def unload(self, name: str, node: str | None = None) -> tuple[str, ...]:
        """Unload *name* from *node*, or wherever it is; the nodes it was unloaded from."""
        model = self._names.resolve(name).model
        self._check_node(node)
        nodes = tuple(
            replica.node.name
            for replica in self._fleet.replicas(model)
            if node in (None, replica.node.name)
            and replica.node.healthy
            and replica.node.lifecycle
            and replica.model.status in (wire.LOADED, wire.LOADING)
        )
        if not nodes and any(not each.node.lifecycle for each in self._fleet.replicas(model)):
            raise Conflict(f"{model} is on a server whose models are not managed from here")
        if not nodes:
            raise ModelNotFound(f"{model} is loaded on no neuron in service")
        for each in nodes:
            await self._loads.unload(each, model)
        return nodes

    async def evict(self, node: str, model: str, reason: str) -> None:
        """Unload one replica for a *reason* that is counted and told as an eviction's."""
        await self._loads.unload(node, model, reason)

    async def unload_idle(self) -> NoReturn:
        """Unload what this gateway loaded and nobody has used for its keep-alive; for ever."""
        await self._idle.run()

    # Deciding; without awaiting, so that nothing changes between a look and what follows from it

    def _next(
        self, resolved: Resolved, exclude: frozenset[str], affinity: str | None
    ) -> Replica | Wait | Load:
        replicas = self._allowed(resolved)
        there = [
            replica
            for replica in replicas
            if replica.node.serving
            and not self._loads.handing_over(replica.node.name, resolved.model)
        ]
        ready = [replica for replica in there if replica.servable]
        usable = [replica for replica in ready if replica.node.name not in exclude]
        if usable:
            return self._chooser.choose(usable, affinity)
        if ready:
            raise UpstreamError(f"no other replica of {resolved.model} can be reached")
        states = {replica.model.status for replica in there}
        for state in (wire.RECOVERING, wire.LOADING, wire.UNLOADING):
            if state in states:
                return Wait(state)
        impaired = [replica for replica in there if replica.model.status == wire.LOADED]
        if impaired:
            raise impaired_error(impaired[0])
        if self._can_load(resolved) or self._loads.under_way(resolved.model) is not None:
            return Load()
        raise not_loadable(resolved.model, replicas)

    def _allowed(self, resolved: Resolved) -> tuple[Replica, ...]:
        """The replicas that requests for the model may go to, in whatever state."""
        return tuple(
            replica
            for replica in self._fleet.replicas(resolved.model)
            if may_serve(resolved.entry, replica.node)
        )

    def _can_load(self, resolved: Resolved) -> bool:
        """Whether a load is worth asking for: not where every node that could have the model is a
        server of another make."""
        if resolved.entry is None:
            return False
        return not loads_nowhere(resolved.entry, self._fleet.nodes())

    async def _make_progress(self, resolved: Resolved, step: Wait | Load, deadline: float) -> None:
        """Return when there is something new to decide on. `ModelLoading` past *deadline*."""
        with trio.move_on_at(deadline) as patience:
            if isinstance(step, Load):
                await self._loads.ensure(resolved)
            else:
                await self._fleet.wait_changed()
        if patience.cancelled_caught:
            if isinstance(step, Wait) and step.state != wire.LOADING:
                raise Unavailable(f"{resolved.model} is {step.state}", retry_after=NO_NODE_RETRY)
            raise self._progress.too_long(resolved)

    def _to_load(self, name: str) -> Resolved:
        try:
            return self._names.resolve(name)
        except ModelNotFound:
            if re.fullmatch(wire.MODEL_ID, name):
                return Resolved(name, name, None)
            raise

    def _check_node(self, node: str | None) -> None:
        names = [known.name for known in self._fleet.nodes()]
        if node is not None and node not in names:
            raise ModelNotFound(f"no neuron of that name; there are: {', '.join(names)}")


def _foreign(neuron: NeuronNode, model: wire.Model) -> Foreign | None:
    return Foreign(neuron, model.source or model.id) if neuron.kind == OPENAI else None
