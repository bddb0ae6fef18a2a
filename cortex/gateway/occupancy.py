"""What stands where, as placement and eviction want to see it: values read off the owners."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from cortex.config.catalogue import Catalogue
from cortex.gateway.eviction import Resident, rank_of
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.gateway.model_costs import ModelCosts
from cortex.gateway.node_owner import NodeOwner
from cortex.gateway.pins import Pins
from cortex.gateway.placement import Demand, Site, infeasible
from cortex.wire import neuron as wire


@attrs.define(eq=False)
class Occupancy:
    """A view for one round of decisions: what a node holds is put together once."""

    catalogue: Catalogue
    fleet: Fleet
    costs: ModelCosts
    owner: Callable[[str], NodeOwner]
    pins: Pins
    _residents: dict[str, tuple[Resident, ...]] = attrs.field(factory=dict, init=False)

    def sites(self, model: str, demand: Demand, only: str | None = None) -> list[Site]:
        """The nodes, or *only* one, for a model that is demanded."""
        nodes = self.fleet.nodes() if only is None else (self.fleet.node(only),)
        return [self._site(node, model, demand) for node in nodes]

    def _site(self, node: NodeSnapshot, model: str, demand: Demand) -> Site:
        if not node.serving or infeasible(demand.entry, node, demand.mb) is not None:
            return Site(node)
        owner = self.owner(node.name)
        return Site(
            node,
            self.residents(node),
            owner.taken(),
            owner.promised_mb(),
            owner.stale(),
            owner.closed(model),
            self.costs.seconds(node.name, model, demand.mb),
        )

    def residents(self, node: NodeSnapshot) -> tuple[Resident, ...]:
        """The models on *node* that are loaded."""
        found = self._residents.get(node.name)
        if found is None:
            found = tuple(
                self._resident(node, model) for model in node.models if model.status == wire.LOADED
            )
            self._residents[node.name] = found
        return found

    def held(self, node: str, model: str) -> bool:
        """Whether the model stays there whoever needs room: it is pinned, or in no catalogue, and
        nobody could ask for it again."""
        entry = self.catalogue.models.get(model)
        return entry is None or node in entry.pinned_on or self.pins.holds(node, model)

    def _resident(self, node: NodeSnapshot, model: wire.Model) -> Resident:
        entry = self.catalogue.models.get(model.id)
        mb = self.costs.resident_mb(model, entry)
        every = node.discovery.devices if node.discovery is not None else ()
        return Resident(
            model.id,
            frozenset(model.devices or (device.index for device in every)),
            mb,
            rank=rank_of(entry),
            requests=self.fleet.load_of(node.name, model.id),
            loaded_at=self.owner(node.name).loaded_at.get(model.id),
            last_used=self.fleet.last_used(node.name, model.id),
            held=self.held(node.name, model.id),
            spare=self._spare(node, model),
            reload_seconds=self.costs.reload_seconds(node.name, model.id, mb),
        )

    def _spare(self, node: NodeSnapshot, model: wire.Model) -> bool:
        return any(
            replica.node.name != node.name
            and replica.node.serving
            and replica.servable
            and not self.owner(replica.node.name).closed(model.id)
            for replica in self.fleet.replicas(model.id)
        )
