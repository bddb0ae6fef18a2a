"""The real control plane over simulated neurons: fleet, poller, router, loads, waiting room."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import EvictionSettings, GatewaySettings, NeuronNode
from cortex.errors import CortexError, ModelNotFound, Overloaded, UpstreamError
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.poller import Poller
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.router import Router
from cortex.wire import neuron as wire
from simulation.neurons import Broken, SimulatedControl, SimulatedNeuron, neurons_of
from simulation.outcome import SERVED, Outcome
from simulation.scenario import Arrival, Scenario

ATTEMPTS = 3
SLACK = 30.0  # seconds beyond the configured waits in which every request has its answer


class SimulatedGateway:
    """Runs a scenario; `Broken` when an invariant does not hold at any event."""

    def __init__(
        self, scenario: Scenario, eviction: EvictionSettings, settings: GatewaySettings, name: str
    ) -> None:
        self.scenario = scenario
        self.settings = settings
        self.eviction = eviction
        self.outcome = Outcome(name)
        self.neurons = neurons_of(scenario, self._told)
        self.pinned = {model.name: model.pinned_on for model in scenario.models}

    async def run(self) -> Outcome:
        nodes = [NeuronNode(name, f"http://{name}:1") for name in self.neurons]
        catalogue = Catalogue(
            tuple(
                CatalogueEntry(model.name, vram_mb=model.mb, pinned_on=model.pinned_on)
                for model in self.scenario.models
            )
        )
        self.fleet = Fleet(nodes)
        control = SimulatedControl(self.neurons)
        names = ModelNames(catalogue, self.fleet)
        poller = Poller(self.fleet, control, self.settings.poll_seconds)
        metrics = GatewayMetrics(CollectorRegistry())
        self.room = WaitingRoom(self.fleet, self.settings.queue_depth, self._queue_wait)
        async with trio.open_nursery() as nursery:
            self.router = Router(
                names, self.fleet, control, poller, metrics, self.settings, self.eviction, nursery
            )
            for neuron in self.neurons.values():
                neuron.nursery = nursery
            await nursery.start(poller.run)
            nursery.start_soon(self.room.run)
            nursery.start_soon(self.router.unload_idle)
            started = trio.current_time()
            async with trio.open_nursery() as clients:
                for outage in self.scenario.outages:
                    clients.start_soon(self._outage, outage, started)
                for arrival in self.scenario.arrivals:
                    await trio.sleep_until(started + arrival.at)
                    clients.start_soon(self._client, arrival, started)
            self._check_nothing_held()
            nursery.cancel_scope.cancel()
        return self.outcome.take(self.neurons)

    @property
    def _queue_wait(self) -> float:
        return self.settings.queue_wait_seconds

    async def _outage(self, outage, started: float) -> None:
        neuron = self.neurons[outage.node]
        await trio.sleep_until(started + outage.at)
        if not neuron.up:
            return
        neuron.die()
        await trio.sleep(outage.seconds)
        neuron.come_back()

    async def _client(self, arrival: Arrival, started: float) -> None:
        bound = self._queue_wait + ATTEMPTS * self.settings.load_wait_seconds + SLACK
        began: list[float] = []
        arrival = Arrival(trio.current_time(), arrival.model, arrival.seconds)
        end = "none"
        with trio.move_on_after(bound + 10 * arrival.seconds) as patience:
            try:
                await self._request(arrival, began)
                end = SERVED
            except CortexError as exc:
                end = exc.error_code or type(exc).__name__
        if patience.cancelled_caught:
            raise Broken(f"{arrival} has no answer after {bound} s")
        self.outcome.add(arrival, end, began[-1] if began and end == SERVED else None)

    async def _request(self, arrival: Arrival, began: list[float]) -> None:
        """What the request core does with a request."""
        async with self.room.seat(arrival.model):
            deadline = trio.current_time() + self._queue_wait
            tried: set[str] = set()
            attempts, last = 0, None
            while attempts < ATTEMPTS:
                try:
                    async with self.router.route(arrival.model, exclude=frozenset(tried)) as lease:
                        try:
                            await self._serve(lease.node, arrival, began)
                            return
                        except ModelNotFound as exc:
                            self.router.not_loaded(lease)
                            last = exc
                        except (Overloaded, UpstreamError) as exc:
                            if isinstance(exc, UpstreamError):
                                self.router.refused(lease)
                            tried.add(lease.node)
                            last = exc
                except UpstreamError as exc:
                    if not isinstance(last, Overloaded) or trio.current_time() >= deadline:
                        raise last or exc from None
                    await self.room.retry_later(arrival.model)
                    tried.clear()
                    continue
                attempts += not isinstance(last, Overloaded)
            assert last is not None
            raise last

    async def _serve(self, node: str, arrival: Arrival, began: list[float]) -> None:
        await self.neurons[node].serve(
            arrival.model, arrival.seconds, lambda: began.append(trio.current_time())
        )

    # Invariants

    def _told(self, event: str, node: str, model: str) -> None:
        """A neuron is about to load or unload."""
        if event == "load":
            for other in self.neurons.values():
                self._check_not_doubled(other, node, model)
        if event == "unload" and node in self.pinned[model]:
            raise Broken(f"{model} is evicted from {node}, where it is pinned")
        if event == "load" and self.pinned[model] and node not in self.pinned[model]:
            raise Broken(f"{model} is loaded on {node}, away from where it is pinned")

    def _check_not_doubled(self, other: SimulatedNeuron, node: str, model: str) -> None:
        hosted = other.hosted.get(model)
        if hosted is None or other.name == node or not other.up:
            return
        if not self.fleet.node(other.name).serving:
            return  # as far as the gateway knows it is away
        if hosted.status == wire.LOADING:
            known = self.fleet.node(other.name)
            raise Broken(f"{model} is loaded on {node} while {known.name} loads it")
        known_there = self.fleet.node(other.name).model(model) is not None
        leaving = self.router._loads.handing_over(other.name, model)
        if hosted.status == wire.LOADED and known_there and not leaving:
            raise Broken(f"{model} is loaded on {node} although {other.name} has it")

    def _check_nothing_held(self) -> None:
        for neuron in self.neurons.values():
            for hosted in neuron.hosted.values():
                if hosted.requests or self.fleet.in_flight(neuron.name, hosted.model):
                    raise Broken(f"{hosted} has requests after the last one's end")
