"""Unloads what the gateway has loaded and nobody has used for its keep-alive.

Never a busy model, never one that is pinned there, and never one that this gateway did not load:
what a neuron's own configuration or another client put there is not the gateway's to take away.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import trio

from cortex.config.gateway import EvictionSettings
from cortex.errors import CortexError
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.gateway.loads import Loads
from cortex.gateway.pins import Pins
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
    """The ``keep_alive`` of *eviction* holds where a catalogue entry has none of its own."""

    names: ModelNames
    fleet: Fleet
    loads: Loads
    eviction: EvictionSettings
    pins: Pins

    async def run(self) -> NoReturn:
        """Look for idle models until cancelled."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            for node, model in sorted(self.loads.loaded_by_us()):
                if self._is_idle(node, model):
                    await self._unload(node, model)

    def is_pinned(self, node: str, model: str) -> bool:
        """Whether *model* is to stay on *node*, by an operator's order or by the catalogue."""
        entry = self.names.catalogue.models.get(model)
        return self.pins.holds(node, model) or (entry is not None and node in entry.pinned_on)

    def keep_alive(self, model: str) -> float:
        entry = self.names.catalogue.models.get(model)
        own = entry.keep_alive if entry is not None else None
        return self.eviction.keep_alive if own is None else own

    def expires_in(self, node: str, model: str) -> float | None:
        """In how many seconds *model* is unloaded if nobody uses it; None when it stays."""
        keep_alive = self.keep_alive(model)
        if keep_alive < 0 or self.is_pinned(node, model):
            return None
        if model not in self.loads.owners.of(node).loaded_at:
            return None
        last_used = self.fleet.last_used(node, model)
        if last_used is None or self.fleet.load_of(node, model):
            return keep_alive
        return max(0.0, keep_alive - (trio.current_time() - last_used))

    def _is_idle(self, node: str, model: str) -> bool:
        snapshot = self.fleet.node(node)
        resident = snapshot.model(model)
        if not snapshot.healthy or resident is None or resident.status != wire.LOADED:
            return False
        if self.is_pinned(node, model) or not self.loads.owners.of(node).free(None):
            return False
        last_used = self.fleet.last_used(node, model)
        requests = self.fleet.load_of(node, model)
        return has_expired(self.keep_alive(model), last_used, trio.current_time(), requests)

    async def _unload(self, node: str, model: str) -> None:
        try:
            await self.loads.unload(node, model, "idle")
        except CortexError as exc:
            log.warning("idle model was not unloaded", node=node, model=model, why=exc.message)
