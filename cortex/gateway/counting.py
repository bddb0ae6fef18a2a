"""How many tokens a prompt has: asked of a node, which needs the tokenizer only."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.errors import NoHealthyNode, UpstreamError
from cortex.gateway import foreign
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.gateway.placement import feasible_on, may_serve
from cortex.wire import neuron as wire


@attrs.frozen(eq=False)
class TokenCounter:
    """Takes no generation slot and loads nothing."""

    names: ModelNames
    fleet: Fleet
    control: NeuronControl

    async def count(self, name: str, body: dict[str, Any]) -> int:
        """The tokens of the prompt in *body* (a ``/tokenize`` body) for the model *name*."""
        resolved = self.names.resolve(name)
        node, there = self._node(resolved)
        if there is not None:
            asked = foreign.tokenize_body(body, there.source or there.id)
            answer = await self.control.foreign_tokenize(node.name, asked)
        else:
            asked = {**body, "model": resolved.model}
            if resolved.entry is not None:
                asked["source"] = resolved.entry.source or resolved.model
            answer = await self.control.tokenize(node.name, asked)
        count = answer.get("count")
        if type(count) is not int or count < 0:
            raise UpstreamError("the neuron's count is no number")
        return count

    def _node(self, resolved: Resolved) -> tuple[NodeSnapshot, wire.Model | None]:
        """A neuron that has the model, else a server of another make that does, with what it has,
        else a neuron that could."""
        ready = [
            replica
            for replica in self.fleet.replicas(resolved.model)
            if replica.node.healthy and replica.servable and may_serve(resolved.entry, replica.node)
        ]
        for replica in ready:
            if replica.node.lifecycle:
                return replica.node, None
        if ready:
            return ready[0].node, ready[0].model
        healthy = [node for node in self.fleet.nodes() if node.healthy]
        names = feasible_on(resolved.entry, healthy)
        if names:
            return self.fleet.node(names[0]), None
        raise NoHealthyNode("no neuron that could count for this model can be reached")
