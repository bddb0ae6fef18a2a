"""What is known of each neuron: frozen snapshots, one owner, synchronous mutators.

Three facts keep snapshots honest. A node is unhealthy only after `MISSES_ALLOWED` polls in a row
went wrong, so that one slow answer does not empty the fleet; it needs one good poll to come (back)
into service. What the gateway itself did after a poll was asked (a load, an unload, a 404 seen)
outranks what that poll reports. And the requests the gateway has under way are counted here, since
a poll knows them only as they were when it was answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs
import trio

from cortex.config.gateway import NeuronNode
from cortex.service.watch import Watch
from cortex.wire import neuron as wire

MISSES_ALLOWED = 3  # one slow poll once made a whole node's models vanish


@attrs.frozen
class NodeSnapshot:
    """One neuron as last seen.

    ``models`` are those it lists, those its activation names, and, while it recovers, those it held
    before. They stay when the node becomes unhealthy: what it served may come back. ``spell``
    counts healthy spells and restarts, so that what was learnt in one is not believed in the next.
    ``suspect`` means that a connection to it failed since the last good poll.
    """

    name: str
    endpoint: str
    healthy: bool = False
    suspect: bool = False
    misses: int = 0
    spell: int = 0
    discovery: wire.Discovery | None = None
    health: wire.Health | None = None
    models: tuple[wire.Model, ...] = ()
    version: str | None = None
    polled_at: float | None = None  # of the last good poll, the fleet's clock
    error: str | None = None

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
        """Resident is not servable: it must be loaded and not report that it can serve nothing.

        A full queue does not make it unservable.
        """
        resident = self.model.status == wire.LOADED
        return resident and (self.model.servable is None or self.model.servable.ok)


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
        self._nodes = {
            name: NodeSnapshot(name, neuron.endpoint.rstrip("/"))
            for name, neuron in self._neurons.items()
        }
        self._replicas: dict[str, tuple[Replica, ...]] = {}
        self._marks: dict[tuple[str, str], _Mark] = {}
        self._in_flight: dict[tuple[str, str], int] = {}
        self._elsewhere: dict[tuple[str, str], int] = {}  # requests that are not ours, as polled
        self._last_used: dict[tuple[str, str], float] = {}
        self._endpoints: dict[tuple[str, str], str] = {}
        self._revision = Watch(0)

    # Reading

    def nodes(self) -> tuple[NodeSnapshot, ...]:
        return tuple(self._nodes.values())

    def node(self, name: str) -> NodeSnapshot:
        """KeyError when no node is configured under *name*."""
        return self._nodes[name]

    def token(self, name: str) -> str | None:
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
        before = self._nodes[name]
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
        )
        for key in [key for key in self._elsewhere if key[0] == name]:
            del self._elsewhere[key]
        for load in health.models:
            key = (name, load.id)
            reported = load.in_flight + load.queue_depth
            self._elsewhere[key] = max(0, reported - self._in_flight.get(key, 0))
        self._publish(after)

    def missed(self, name: str, error: str) -> None:
        """Take in that a poll went wrong."""
        before = self._nodes[name]
        misses = before.misses + 1
        healthy = before.healthy and misses < MISSES_ALLOWED
        self._publish(attrs.evolve(before, healthy=healthy, misses=misses, error=error))

    def described(self, name: str, discovery: wire.Discovery, version: str | None) -> None:
        after = attrs.evolve(self._nodes[name], discovery=discovery, version=version)
        self._publish(after)

    def suspect(self, name: str, error: str) -> None:
        """A connection to the node failed: prefer others until the next good poll."""
        self._publish(attrs.evolve(self._nodes[name], suspect=True, error=error))

    # What the gateway itself did

    def loaded(self, name: str, model: wire.Model) -> None:
        """The neuron has answered a load with *model*."""
        self._last_used[name, model.id] = self._clock()
        self._mark(name, model.id, model)

    def unloading(self, name: str, model_id: str) -> None:
        """The neuron is about to be told to unload the model."""
        model = self._nodes[name].model(model_id)
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
            self._last_used[key] = self._clock()

    def in_flight(self, name: str, model_id: str) -> int:
        """Requests of this gateway under way there."""
        return self._in_flight.get((name, model_id), 0)

    def load_of(self, name: str, model_id: str) -> int:
        """Requests under way or queued there, ours as of now and others' as of the last poll."""
        key = (name, model_id)
        return self._in_flight.get(key, 0) + self._elsewhere.get(key, 0)

    def last_used(self, name: str, model_id: str) -> float | None:
        """When the gateway last loaded it there or finished a request; the fleet's clock."""
        return self._last_used.get((name, model_id))

    # Endpoints, asked once and kept while the model stays

    def endpoint(self, name: str, model_id: str) -> str | None:
        return self._endpoints.get((name, model_id))

    def remember_endpoint(self, name: str, model_id: str, url: str) -> None:
        self._endpoints[name, model_id] = url

    def _forget_endpoints(self, name: str) -> None:
        for key in [key for key in self._endpoints if key[0] == name]:
            del self._endpoints[key]

    # Keeping the snapshots together

    def _forget_marks(self, name: str) -> None:
        for key in [key for key in self._marks if key[0] == name]:
            del self._marks[key]

    def _mark(self, name: str, model_id: str, model: wire.Model | None) -> None:
        self._marks[name, model_id] = _Mark(self._clock(), model)
        before = self._nodes[name]
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
        self._nodes[node.name] = node
        resident = {model.id for model in node.models if model.status == wire.LOADED}
        for key in [key for key in self._endpoints if key[0] == node.name]:
            if key[1] not in resident:
                del self._endpoints[key]
        found: dict[str, list[Replica]] = {}
        for each in self._nodes.values():
            for model in each.models:
                found.setdefault(model.id, []).append(Replica(each, model))
        self._replicas = {model_id: tuple(replicas) for model_id, replicas in found.items()}
        self._revision.set(self._revision.value + 1)


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
