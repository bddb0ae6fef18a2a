"""Restarts a neuron that has loaded and unloaded many times, when nobody uses it.

Memory that is given back in pieces is of less and less use: a new process has it in one. The neuron
loads its models again by itself; until they are there requests for them wait.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import trio

from cortex.config.gateway import EvictionSettings
from cortex.errors import CortexError
from cortex.gateway.fleet import Fleet
from cortex.gateway.node_owner import NodeOwner, NodeOwners
from cortex.service import logs
from cortex.wire import neuron as wire

CHECK_SECONDS = 10.0
QUIET_SECONDS = 60.0  # without a request to any of its models

log = logs.get("gateway.defrag")


@attrs.frozen(eq=False)
class Defragmenter:
    """Once a neuron has unloaded ``defrag_after_cycles`` models it is due; *rules* may be live."""

    fleet: Fleet
    owners: NodeOwners
    rules: EvictionSettings

    async def run(self) -> NoReturn:
        """Look for neurons that are due until cancelled; one restarts at a time."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            for owner in self.owners.known():
                if self.is_due(owner) and self.is_quiet(owner):
                    await self._restart(owner)

    def is_due(self, owner: NodeOwner) -> bool:
        limit = self.rules.defrag_after_cycles
        return 0 < limit <= owner.cycles()

    def is_quiet(self, owner: NodeOwner) -> bool:
        """Whether the node is in service, at work on nothing, and was not used lately."""
        node, now = self.fleet.node(owner.name), trio.current_time()
        if not node.serving or not owner.free(None):
            return False
        if node.health is not None and node.health.status != "ok":
            return False
        for model in node.models:
            if model.status not in (wire.LOADED, wire.FAILED):
                return False
            used = self.fleet.last_used(node.name, model.id)
            if self.fleet.load_of(node.name, model.id):
                return False
            if used is not None and now - used < QUIET_SECONDS:
                return False
        return True

    async def _restart(self, owner: NodeOwner) -> None:
        log.info("restarting against fragmented memory", node=owner.name, cycles=owner.cycles())
        try:
            await owner.restart()
        except CortexError as exc:
            log.warning("neuron was not restarted", node=owner.name, why=exc.message)
        else:
            log.info("restarted", node=owner.name)
