"""`cortex pull --node`: pulls on neurons, by way of the gateway."""

from __future__ import annotations

import time
from typing import Any

import attrs
import click

from cortex.cli.client import GatewayClient
from cortex.cli.exits import Failed
from cortex.cli.pull_view import ENDS, PullView
from cortex.wire import neuron as wire
from cortex.wire.converter import structure

Json = dict[str, Any]

ORDER = "/fleet/models/pull"
EVERY = "all"  # in place of a node's name
LOOK_SECONDS = 0.5
LOOKS_ALLOWED = 20  # that fail in a row, or do not show a pull, before it counts as lost


@attrs.define(eq=False)
class NodePulls:
    """The pulls of one order, by node."""

    _client: GatewayClient
    _view: PullView
    pulls: dict[str, wire.Pull] = attrs.field(factory=dict, init=False)
    _silent: int = attrs.field(default=0, init=False)
    _unseen: dict[str, int] = attrs.field(factory=dict, init=False)

    def run(self, order: Json) -> dict[str, wire.Pull]:
        """Order, and look until all have ended. Ctrl-C ends the looking alone."""
        for told in self._client.post(ORDER, order).get("pulls") or []:
            self.pulls[str(told.get("node"))] = structure(told, wire.Pull)
        self._show()
        try:
            while self._open():
                time.sleep(LOOK_SECONDS)
                self._look()
                self._show()
        except KeyboardInterrupt:
            nodes = ", ".join(self._open())
            click.echo(f"the pull goes on at {nodes}; --cancel stops it", err=True)
            raise
        return self.pulls

    def _open(self) -> list[str]:
        return [node for node, pull in self.pulls.items() if pull.status not in ENDS]

    def _show(self) -> None:
        for node, pull in self.pulls.items():
            self._view.show(node, pull)

    def _look(self) -> None:
        try:
            answer = self._client.get("/fleet/pulls")
        except Failed:
            self._silent += 1
            if self._silent >= LOOKS_ALLOWED:
                raise
            return
        self._silent = 0
        seen = self._take(answer)
        for node in self._open():
            self._unseen[node] = 0 if node in seen else self._unseen.get(node, 0) + 1
            if self._unseen[node] >= LOOKS_ALLOWED:
                lost = "it is not listed any more"
                self.pulls[node] = attrs.evolve(self.pulls[node], status=wire.FAILED, error=lost)

    def _take(self, answer: Json) -> set[str]:
        """Note how each pull is; the nodes that were told of. Ended ones stay as they ended."""
        newest: dict[str, wire.Pull] = {}  # a list may have one that ended before this order
        for told in answer.get("pulls") or []:
            node, pull = str(told.get("node")), structure(told, wire.Pull)
            known = self.pulls.get(node)
            if known is not None and _same(known, pull):
                newest[node] = pull
        for node, pull in newest.items():
            if self.pulls[node].status not in ENDS:
                self.pulls[node] = pull
        return set(newest)


def _same(one: wire.Pull, other: wire.Pull) -> bool:
    return (one.id, one.source, one.quant) == (other.id, other.source, other.quant)
