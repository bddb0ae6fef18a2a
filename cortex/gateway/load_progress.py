"""How far a load is, for whoever waits for it; and why a model cannot be waited for."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.errors import CortexError, LoadFailed, ModelLoading, NoHealthyNode, Unavailable
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.fleet_changes import progress_of
from cortex.gateway.loads import Loads
from cortex.gateway.planner import NO_NODE_RETRY
from cortex.wire import neuron as wire

IMPAIRED_RETRY = 10.0
LOADING_RETRY = (2.0, 60.0)  # seconds: what a client is told lies between


@attrs.frozen(eq=False)
class LoadProgress:
    """What is known of the loads under way."""

    _names: ModelNames
    _fleet: Fleet
    _loads: Loads

    def of(self, name: str) -> dict[str, Any] | None:
        """``{node, stage, progress, eta}`` of a load of *name*, as far as known; None without one.

        ``progress`` is between 0 and 1, ``eta`` in seconds; ``stage`` is always there.
        """
        try:
            model = self._names.resolve(name).model
        except CortexError:
            return None
        under_way = self._loads.under_way(model)
        for replica in self._fleet.replicas(model):
            mine = under_way is not None and replica.node.name == under_way[0]
            if replica.model.status == wire.LOADING and (mine or under_way is None):
                return _told(replica)
        if under_way is None:
            return None
        node = under_way[0]
        if node is not None:
            return {"node": node, "stage": "starting"}
        return {"stage": "waiting" if self._loads.waiting_for(model) else "placing"}

    def too_long(self, resolved: Resolved) -> ModelLoading:
        """For whoever has waited for as long as he may."""
        known = self.of(resolved.requested) or {}
        shortest, longest = LOADING_RETRY
        retry_after = min(max(known.get("eta", NO_NODE_RETRY), shortest), longest)
        where = f" on {known['node']}" if "node" in known else ""
        return ModelLoading(
            f"{resolved.model} is still loading{where}",
            retry_after=retry_after,
            extras={"loading": known},
        )


def _told(replica: Replica) -> dict[str, Any]:
    """What is known of a load, for error bodies; what is not known is left out."""
    return {"node": replica.node.name, "stage": "starting", **progress_of(replica.model)}


def impaired_error(replica: Replica) -> Unavailable:
    """For a model that is loaded and can serve nothing, as on *replica*."""
    servable, lost = replica.model.servable, replica.lost_device
    reason = (servable.detail or servable.reason) if servable is not None else None
    if not reason and lost is not None:
        reason = f"device {lost.index}: {lost.reason or 'is lost'}"
    return Unavailable(
        f"{replica.model.id} is loaded on {replica.node.name} but can serve nothing now"
        + (f": {reason}" if reason else ""),
        retry_after=IMPAIRED_RETRY,
    )


def not_loadable(model: str, replicas: tuple[Replica, ...]) -> CortexError:
    """For a model only neurons know of, none of which can serve it."""
    for replica in replicas:
        if replica.node.serving and replica.model.status == wire.FAILED:
            cause = replica.model.error or "the neuron does not say why"
            return LoadFailed(
                f"loading {model} on {replica.node.name} failed: {cause}", retry_after=30.0
            )
    nodes = ", ".join(replica.node.name for replica in replicas)
    return NoHealthyNode(
        f"{model} is on {nodes}, not reachable now" if nodes else f"{model} is not loaded anywhere",
        retry_after=NO_NODE_RETRY,
    )
