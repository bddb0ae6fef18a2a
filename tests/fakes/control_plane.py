"""The gateway's whole control plane, without its HTTP edge, over fake neurons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from fakes.neuron import FakeNeuron
from prometheus_client import CollectorRegistry

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import EvictionSettings, GatewaySettings
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.control import NeuronControl, open_control
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.pins import Pins
from cortex.gateway.poller import Poller
from cortex.gateway.router import Router


@attrs.define(eq=False)
class ControlPlane:
    neurons: dict[str, FakeNeuron]
    fleet: Fleet
    control: NeuronControl
    names: ModelNames
    poller: Poller
    router: Router
    registry: CollectorRegistry
    metrics: GatewayMetrics
    pins: Pins
    nursery: trio.Nursery

    async def seen(self, predicate: Callable[[Fleet], bool]) -> None:
        """Wait, at most a minute, until the fleet's picture is like that."""
        with trio.fail_after(60):
            while not predicate(self.fleet):
                await self.fleet.wait_changed()

    def sample(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def control_plane(
    *neurons: FakeNeuron,
    models: tuple[CatalogueEntry, ...] = (),
    aliases: dict[str, str] | None = None,
    keep_alive: float = -1.0,
    eviction: EvictionSettings | None = None,
    poll_seconds: float = 2.0,
    **settings: Any,
) -> AsyncIterator[ControlPlane]:
    """Router, loads and poller over *neurons*; those with a port of 0 are started first."""
    async with trio.open_nursery() as nursery:
        for neuron in neurons:
            if not neuron.port:
                await nursery.start(neuron.run)
        nodes = [neuron.configured() for neuron in neurons]
        fleet = Fleet(nodes)
        async with open_control(fleet.neuron) as control, trio.open_nursery() as inner:
            names = ModelNames(Catalogue(models, aliases or {}), fleet)
            poller = Poller(fleet, control, poll_seconds)
            registry = CollectorRegistry()
            metrics = GatewayMetrics(registry)
            metrics.observe_fleet(fleet.nodes)
            pins = Pins()
            router = Router(
                names,
                fleet,
                control,
                poller,
                metrics,
                GatewaySettings(**settings),
                eviction or EvictionSettings(keep_alive=keep_alive),
                inner,
                pins,
            )
            await inner.start(poller.run)
            if keep_alive >= 0:
                inner.start_soon(router.unload_idle)
            yield ControlPlane(
                {neuron.name: neuron for neuron in neurons},
                fleet,
                control,
                names,
                poller,
                router,
                registry,
                metrics,
                pins,
                inner,
            )
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
