"""Unloads what the gateway has loaded and nobody has used for its keep-alive.

Never a busy model, never one that is pinned there, and never one that this gateway did not load:
what a neuron's own configuration or another client put there is not the gateway's to take away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import attrs
import trio

from cortex.config.catalogue import Catalogue
from cortex.errors import CortexError
from cortex.gateway.fleet import Fleet
from cortex.gateway.loads import Loads
from cortex.gateway.metrics import GatewayMetrics
from cortex.service import logs
from cortex.wire import neuron as wire

CHECK_SECONDS = 1.0

log = logs.get("gateway.idle")


def has_expired(keep_alive: float, last_used: float | None, now: float, requests: int) -> bool:
    """Whether a model with *requests* under way, idle since *last_used*, is to go. Seconds.

    A *keep_alive* of 0 means at once, a negative one never.
    """
    if keep_alive < 0 or requests > 0 or last_used is None:
        return False
    return now - last_used >= keep_alive


@attrs.frozen(eq=False)
class IdleUnloader:
    """``keep_alive`` (seconds) holds where a catalogue entry has none of its own."""

    catalogue: Catalogue
    fleet: Fleet
    loads: Loads
    metrics: GatewayMetrics
    unload: Callable[[str, str], Awaitable[None]]  # node and model
    keep_alive: float

    async def run(self) -> NoReturn:
        """Look for idle models until cancelled."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            for node, model in sorted(self.loads.loaded_by_us()):
                if self._is_idle(node, model):
                    await self._unload(node, model)

    def _is_idle(self, node: str, model: str) -> bool:
        snapshot = self.fleet.node(node)
        resident = snapshot.model(model)
        if not snapshot.healthy or resident is None or resident.status != wire.LOADED:
            return False
        entry = self.catalogue.models.get(model)
        if entry is not None and node in entry.pinned_on:
            return False
        own = entry.keep_alive if entry is not None else None
        keep_alive = self.keep_alive if own is None else own
        last_used = self.fleet.last_used(node, model)
        requests = self.fleet.load_of(node, model)
        return has_expired(keep_alive, last_used, trio.current_time(), requests)

    async def _unload(self, node: str, model: str) -> None:
        try:
            await self.unload(node, model)
        except CortexError as exc:
            log.warning("idle model was not unloaded", node=node, model=model, why=exc.message)
        else:
            self.metrics.eviction(model, node, "idle")
