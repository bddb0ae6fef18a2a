"""What is known of each neuron: frozen snapshots, one owner, synchronous mutators.

Three facts keep snapshots honest. A node is unhealthy only after `MISSES_ALLOWED` polls in a row
went wrong, so that one slow answer does not empty the fleet; it needs one good poll to come (back)
into service. What the gateway itself did after a poll was asked (a load, an unload, a 404 seen)
outranks what that poll reports. And the requests the gateway has under way are counted here, since
a poll knows them only as they were when it was answered.

Which nodes there are may change while the gateway runs (`Fleet.configure`). A node that is removed
takes no new requests; what is under way there goes on, and what is still told of it is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from cortex.config.gateway import CORTEX, NeuronNode
from cortex.gateway.membership import FleetChange, compare, same_place
from cortex.service.watch import Watch
from cortex.wire import neuron as wire

MISSES_ALLOWED = 3  # one slow poll once made a whole node's models vanish


@attrs.frozen
class NodeSnapshot:
    """One neuron as last seen.

    ``models`` are those it lists, those its activation names, and, while it recovers, those it held
    before. They stay when the node becomes unhealthy: what it served may come back. ``spell``
    counts healthy spells and restarts, so that what was learnt in one is not believed in the next.
    ``suspect`` means that a connection to it failed since the last good poll. ``lifecycle`` says
    whether models can be loaded and unloaded there; one without is never placed on. ``circuit`` is
    the state of its breaker (`breaker.State`).
    """

    name: str
    endpoint: str
    lifecycle: bool = True
    healthy: bool = False
    suspect: bool = False
    misses: int = 0
    spell: int = 0
    discovery: wire.Discovery | None = None
    health: wire.Health | None = None
    models: tuple[wire.Model, ...] = ()
    version: str | None = None
    polled_at: float | None = None  # of the last good poll, the fleet's clock
    asked_at: float | None = None  # when that poll was asked
    error: str | None = None
    circuit: str = "closed"

    @property
    def serving(self) -> bool:
        """Whether new requests may be sent to it."""
        return self.healthy and (self.health is None or self.health.status != "draining")

    def model(self, model_id: str) -> wire.Model | None:
        return next((model for model in self.models if model.id == model_id), None)


@attrs.frozen
class Replica:
    """A model on a node, in whatever state."""

    node: NodeSnapshot
    model: wire.Model

    @property
    def servable(self) -> bool:
        """Resident is not servable: it must be loaded, not report that it can serve nothing, and
        lie on no device that is lost. A full queue does not make it unservable.
        """
        if self.model.status != wire.LOADED:
            return False
        told = self.model.servable
        return (told is None or told.ok) and self.lost_device is None

    @property
    def lost_device(self) -> wire.DeviceHealth | None:
        """One of its devices that is in no working order, if there is one."""
        devices = self.node.health.devices if self.node.health is not None else ()
        mine = self.model.devices
        return next((each for each in devices if not each.ok and each.index in mine), None)


@attrs.frozen
class _Mark:
    """What the gateway did to a model at ``at``; ``model`` is None when it is gone."""

    at: float
    model: wire.Model | None


class Fleet:
    """The one owner of what is known of the nodes. All mutators are synchronous."""

    def __init__(
        self, neurons: Iterable[NeuronNode], *, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self._clock = clock
        self._neurons = {neuron.name: neuron for neuron in neurons}
        self._nodes = {name: _unseen(neuron) for name, neuron in self._neurons.items()}
        self._replicas: dict[str, tuple[Replica, ...]] = {}
        self._marks: dict[tuple[str, str], _Mark] = {}
        self._in_flight: dict[tuple[str, str], int] = {}
        self._elsewhere: dict[tuple[str, str], int] = {}  # requests that are not ours, as polled
        self._capacities: dict[tuple[str, str], int | None] = {}  # as polled
        self._last_used: dict[tuple[str, str], float] = {}
        self._endpoints: dict[tuple[str, str], str] = {}
        self._since: dict[str, float] = {}  # when a node was added or moved, if not at the start
        self._removed: dict[str, NodeSnapshot] = {}  # as last seen, but unhealthy
        self._revision = Watch(0)
        self._configurations = Watch(0)
        self._idle = Watch(0)

    # Which nodes there are

    def neurons(self) -> tuple[NeuronNode, ...]:
        """The nodes as they are configured now."""
        return tuple(self._neurons.values())

    def neuron(self, name: str) -> NeuronNode:
        """KeyError when no node is configured under *name*."""
        return self._neurons[name]

    def configure(self, neurons: Iterable[NeuronNode]) -> FleetChange:
        """Have *neurons* from now on, in their order; what that changed (`compare` says before)."""
        after = {neuron.name: neuron for neuron in neurons}
        change = compare(self._neurons.values(), after.values())
        moved = [
            name for name in change.changed if not same_place(self._neurons[name], after[name])
        ]
        for name in (*change.removed, *moved):
            self._forget(name)
        self._neurons = after
        for name in (*change.added, *moved):
            self._since[name] = self._clock()
            self._nodes[name] = attrs.evolve(_unseen(after[name]), spell=self._next_spell(name))
        self._nodes = {name: self._nodes[name] for name in after}
        self._index()
        self._configurations.set(self._configurations.value + 1)
        return change

    async def wait_configured(self) -> None:
        """Return after the next `configure`."""
        await self._configurations.wait_changed()

    # Reading

    def nodes(self) -> tuple[NodeSnapshot, ...]:
        return tuple(self._nodes.values())

    def node(self, name: str) -> NodeSnapshot:
        """One that was removed is unhealthy; KeyError for a name that was never configured."""
        node = self._nodes.get(name)
        return self._removed[name] if node is None else node

    def token(self, name: str) -> str | None:
        """KeyError when no node is configured under *name*."""
        return self._neurons[name].token

    def replicas(self, model_id: str) -> tuple[Replica, ...]:
        """*model_id* on every node that lists it, unhealthy nodes included."""
        return self._replicas.get(model_id, ())

    def model_ids(self) -> Iterable[str]:
        return self._replicas.keys()

    async def wait_changed(self) -> None:
        """Return after the next change of any snapshot."""
        await self._revision.wait_changed()

    # Polls

    def polled(
        self, name: str, models: Iterable[wire.Model], health: wire.Health, *, asked_at: float
    ) -> None:
        """Take in a good poll that was asked at *asked_at*."""
        before = self._nodes.get(name)
        if before is None or asked_at < self._since.get(name, asked_at):
            return  # removed, or moved since: this is another machine's answer
        restarted = before.health is not None and health.uptime_secs < before.health.uptime_secs
        new_spell = restarted or not before.healthy
        if new_spell:
            self._forget_endpoints(name)
        if restarted:
            self._forget_marks(name)
        listed = self._with_marks(name, _listed(before, models, health), asked_at)
        after = attrs.evolve(
            before,
            healthy=True,
            suspect=False,
            misses=0,
            error=None,
            spell=before.spell + new_spell,
            health=health,
            models=listed,
            polled_at=self._clock(),
            asked_at=asked_at,
        )
        for known in (self._elsewhere, self._capacities):
            _drop(known, name)
        for load in health.models:
            key = (name, load.id)
            self._capacities[key] = load.max_in_flight
            reported = load.in_flight + load.queue_depth
            self._elsewhere[key] = max(0, reported - self._in_flight.get(key, 0))
        self._publish(after)

    def missed(self, name: str, error: str) -> None:
        """Take in that a poll went wrong."""
        before = self.node(name)
        misses = before.misses + 1
        healthy = before.healthy and misses < MISSES_ALLOWED
        self._publish(attrs.evolve(before, healthy=healthy, misses=misses, error=error))

    def described(self, name: str, discovery: wire.Discovery, version: str | None) -> None:
        after = attrs.evolve(self.node(name), discovery=discovery, version=version)
        self._publish(after)

    def suspect(self, name: str, error: str) -> None:
        """A connection to the node failed: prefer others until the next good poll."""
        self._publish(attrs.evolve(self.node(name), suspect=True, error=error))

    def circuit(self, name: str, state: str) -> None:
        """The node's breaker is in *state* now."""
        before = self.node(name)
        if before.circuit != state:
            self._publish(attrs.evolve(before, circuit=state))

    # What the gateway itself did

    def loaded(self, name: str, model: wire.Model) -> None:
        """The neuron has answered a load with *model*."""
        self._used(name, model.id)
        self._mark(name, model.id, model)

    def settled(self, name: str, model_id: str) -> bool:
        """Whether a poll that was asked since has shown what the gateway last did to the model."""
        return (name, model_id) not in self._marks

    def unloading(self, name: str, model_id: str) -> None:
        """The neuron is about to be told to unload the model."""
        model = self.node(name).model(model_id)
        if model is not None:
            self._mark(name, model_id, attrs.evolve(model, status=wire.UNLOADING))

    def gone(self, name: str, model_id: str) -> None:
        """The neuron has unloaded the model, or has answered that it does not have it."""
        self._endpoints.pop((name, model_id), None)
        self._last_used.pop((name, model_id), None)
        self._mark(name, model_id, None)

    @contextmanager
    def hold(self, name: str, model_id: str) -> Iterator[None]:
        """Count one request under way for as long as the block lasts."""
        key = (name, model_id)
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
                self._idle.set(self._idle.value + 1)
            self._used(name, model_id)

    def in_flight(self, name: str, model_id: str) -> int:
        """Requests of this gateway under way there."""
        return self._in_flight.get((name, model_id), 0)

    async def wait_idle(self) -> None:
        """Return when the next replica has no request of this gateway left."""
        await self._idle.wait_changed()

    def load_of(self, name: str, model_id: str) -> int:
        """Requests under way or queued there, ours as of now and others' as of the last poll."""
        key = (name, model_id)
        return self._in_flight.get(key, 0) + self._elsewhere.get(key, 0)

    def capacity_of(self, name: str, model_id: str) -> int | None:
        """How many requests the replica works on at a time, as far as its node has said."""
        return self._capacities.get((name, model_id))

    def last_used(self, name: str, model_id: str) -> float | None:
        """When the gateway last loaded it there or finished a request; the fleet's clock."""
        return self._last_used.get((name, model_id))

    # Endpoints, asked once and kept while the model stays

    def endpoint(self, name: str, model_id: str) -> str | None:
        return self._endpoints.get((name, model_id))

    def remember_endpoint(self, name: str, model_id: str, url: str) -> None:
        if name in self._nodes:
            self._endpoints[name, model_id] = url

    def _forget_endpoints(self, name: str) -> None:
        _drop(self._endpoints, name)

    # Keeping the snapshots together

    def _used(self, name: str, model_id: str) -> None:
        if name in self._nodes:
            self._last_used[name, model_id] = self._clock()

    def _next_spell(self, name: str) -> int:
        before = self._removed.pop(name, None)
        return 0 if before is None else before.spell + 1

    def _forget(self, name: str) -> None:
        """Drop what is known of the node but for its last snapshot; its requests stay counted."""
        last = self._nodes.pop(name)
        gone = "is not configured any more"
        self._removed[name] = attrs.evolve(last, healthy=False, models=(), error=gone)
        self._since.pop(name, None)
        for known in (self._elsewhere, self._capacities, self._last_used, self._endpoints):
            _drop(known, name)
        self._forget_marks(name)

    def _forget_marks(self, name: str) -> None:
        _drop(self._marks, name)

    def _mark(self, name: str, model_id: str, model: wire.Model | None) -> None:
        before = self._nodes.get(name)
        if before is None:
            return
        self._marks[name, model_id] = _Mark(self._clock(), model)
        others = tuple(known for known in before.models if known.id != model_id)
        models = others if model is None else (*others, model)
        self._publish(attrs.evolve(before, models=models))

    def _with_marks(
        self, name: str, listed: dict[str, wire.Model], asked_at: float
    ) -> tuple[wire.Model, ...]:
        for key in [key for key in self._marks if key[0] == name]:
            mark = self._marks[key]
            if mark.at < asked_at:
                del self._marks[key]  # the poll has seen it
            elif mark.model is None:
                listed.pop(key[1], None)
            else:
                listed[key[1]] = mark.model
        return tuple(listed.values())

    def _publish(self, node: NodeSnapshot) -> None:
        """Replace a node's snapshot, and its replicas only: with many nodes polls come often."""
        before = self._nodes.get(node.name)
        if before is None:
            return
        self._nodes[node.name] = node
        resident = {model.id for model in node.models if model.status == wire.LOADED}
        for key in [key for key in self._endpoints if key[0] == node.name]:
            if key[1] not in resident:
                del self._endpoints[key]
        here = {model.id: Replica(node, model) for model in node.models}
        for model_id in here.keys() | {model.id for model in before.models}:
            self._replace(node.name, model_id, here.get(model_id))
        self._revision.set(self._revision.value + 1)

    def _replace(self, name: str, model_id: str, replica: Replica | None) -> None:
        """Have *replica* as the one of *model_id* on the node, in the order of the nodes."""
        found = {each.node.name: each for each in self._replicas.get(model_id, ())}
        found.pop(name, None)
        if replica is not None:
            found[name] = replica
        if len(found) > 1:
            found = {each: found[each] for each in self._nodes if each in found}
        if found:
            self._replicas[model_id] = tuple(found.values())
        else:
            self._replicas.pop(model_id, None)

    def _index(self) -> None:
        """Find the replicas anew and wake who waits for a change."""
        found: dict[str, list[Replica]] = {}
        for each in self._nodes.values():
            for model in each.models:
                found.setdefault(model.id, []).append(Replica(each, model))
        self._replicas = {model_id: tuple(replicas) for model_id, replicas in found.items()}
        self._revision.set(self._revision.value + 1)


def _drop(known: dict[tuple[str, str], Any], name: str) -> None:
    """Forget what is known by node and model of the node *name*."""
    for key in [key for key in known if key[0] == name]:
        del known[key]


def _unseen(neuron: NeuronNode) -> NodeSnapshot:
    return NodeSnapshot(neuron.name, neuron.endpoint.rstrip("/"), lifecycle=neuron.kind == CORTEX)


def _listed(
    before: NodeSnapshot, models: Iterable[wire.Model], health: wire.Health
) -> dict[str, wire.Model]:
    """By id: what a poll lists, what activation is to load, and what is being recovered."""
    listed = {model.id: model for model in models}
    activation = health.activation
    coming = activation.pending
    if activation.in_progress is not None:
        coming = (activation.in_progress, *coming)
    for model_id in coming:
        listed.setdefault(model_id, wire.Model(model_id, wire.LOADING))
    for failed in activation.failed:
        listed.setdefault(
            failed.model_id, wire.Model(failed.model_id, wire.FAILED, error=failed.error)
        )
    if health.status == wire.RECOVERING:
        for model in before.models:
            if model.status in (wire.LOADED, wire.RECOVERING):
                listed.setdefault(
                    model.id, attrs.evolve(model, status=wire.RECOVERING, servable=None)
                )
    return listed
