"""How many tokens a prompt has: asked of a neuron, which needs the tokenizer only."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.errors import NoHealthyNode, UpstreamError
from cortex.gateway.catalogue import ModelNames, Resolved
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import Fleet
from cortex.gateway.placement import feasible_on


@attrs.frozen(eq=False)
class TokenCounter:
    """Takes no generation slot and loads nothing."""

    names: ModelNames
    fleet: Fleet
    control: NeuronControl

    async def count(self, name: str, body: dict[str, Any]) -> int:
        """The tokens of the prompt in *body* (a ``/tokenize`` body) for the model *name*."""
        resolved = self.names.resolve(name)
        node = self._node(resolved)
        asked = {**body, "model": resolved.model}
        if resolved.entry is not None:
            asked["source"] = resolved.entry.source or resolved.model
        answer = await self.control.tokenize(node, asked)
        count = answer.get("count")
        if type(count) is not int or count < 0:
            raise UpstreamError("the neuron's count is no number")
        return count

    def _node(self, resolved: Resolved) -> str:
        """A node that has the model, else one that could."""
        for replica in self.fleet.replicas(resolved.model):
            if replica.servable:
                return replica.node.name
        healthy = [node for node in self.fleet.nodes() if node.healthy]
        names = feasible_on(resolved.entry, healthy)
        if not names:
            raise NoHealthyNode("no neuron that could count for this model can be reached")
        return names[0]
