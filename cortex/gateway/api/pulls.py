"""Pulls on the fleet's neurons: order, look, stop."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from cortex.gateway.pulls import FleetPulls, NodePull
from cortex.service.http import Answer, HttpRequest, Route
from cortex.wire import json, limits
from cortex.wire import neuron as wire
from cortex.wire.converter import structure


@attrs.frozen
class PullOrder:
    """Without a ``node`` every neuron that may load the model gets its files."""

    model: str = attrs.field(validator=limits.non_empty)
    node: str | None = None
    revision: str | None = attrs.field(default=None, validator=limits.at_most(200))
    quant: str | None = attrs.field(default=None, validator=limits.at_most(32))
    verify: bool = False


@attrs.frozen
class CancelOrder:
    model: str = attrs.field(validator=limits.non_empty)
    node: str | None = None


@attrs.frozen(eq=False)
class PullApi:
    pulls: FleetPulls

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/fleet/pulls", self.list),
            Route("POST", "/fleet/models/pull", self.order),
            Route("POST", "/fleet/models/pull/cancel", self.cancel),
        ]

    async def list(self, request: HttpRequest) -> Answer:
        return Answer(_body(await self.pulls.states()))

    async def order(self, request: HttpRequest) -> Answer:
        """Begin; ``GET /fleet/pulls`` tells how far it is."""
        asked = structure(json.load_object(request.body), PullOrder)
        ordered = await self.pulls.order(
            asked.model,
            asked.node,
            revision=asked.revision,
            quant=asked.quant,
            verify=asked.verify,
        )
        return Answer(_body(ordered), 202)

    async def cancel(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), CancelOrder)
        nodes = await self.pulls.cancel(asked.model, asked.node)
        return Answer(json.dumps({"status": wire.CANCELLED, "nodes": nodes}))


def _body(pulls: Iterable[NodePull]) -> bytes:
    return json.dumps({"pulls": [{"node": each.node, **_plain(each.pull)} for each in pulls]})


def _plain(pull: wire.Pull) -> dict[str, object]:
    return attrs.asdict(pull, filter=lambda _, value: value is not None)
