"""First come, first served, with the least recently used model evicted: what a straightforward
gateway does. A request goes to the node that has its model or is to get it, else to where there is
most room, else to where the oldest idle model is; each node takes its requests strictly in order,
and loads what the first of them needs as soon as what it displaces is idle."""

from __future__ import annotations

import math
from collections import deque

import attrs
import trio

from cortex.errors import CortexError
from cortex.wire import neuron as wire
from simulation.neurons import SEATS, SimulatedNeuron, neurons_of
from simulation.outcome import SERVED, Outcome
from simulation.scenario import Arrival, Scenario

ATTEMPTS = 3


@attrs.define(eq=False)
class _Waiting:
    arrival: Arrival
    go: trio.Event = attrs.field(factory=trio.Event)
    error: CortexError | None = None


@attrs.define(eq=False)
class _Line:
    """A node's requests in order, served by `run`."""

    neuron: SimulatedNeuron
    waiting: deque[_Waiting] = attrs.field(factory=deque)
    last_used: dict[str, float] = attrs.field(factory=dict)
    running: dict[str, int] = attrs.field(factory=dict)
    changed: trio.Event = attrs.field(factory=trio.Event)

    def tell(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def run(self) -> None:
        while True:
            if not self.waiting:
                await self.changed.wait()
                continue
            first = self.waiting[0]
            try:
                await self._have(first.arrival.model)
            except CortexError as exc:
                first.error = exc
            else:
                while self.running.get(first.arrival.model, 0) >= SEATS:
                    await self.changed.wait()
                model = first.arrival.model
                self.running[model] = self.running.get(model, 0) + 1
            self.waiting.popleft()
            first.go.set()

    async def _have(self, model: str) -> None:
        """Load it if need be, once enough of the others are idle and gone."""
        neuron = self.neuron
        hosted = neuron.hosted.get(model)
        if hosted is not None and hosted.status == wire.LOADED:
            return
        mb = neuron.sizes[model]
        device = self._device(mb)
        while neuron.free(device) < mb:
            idle = [
                each
                for each in neuron.hosted.values()
                if each.device == device and not self.running.get(each.model)
            ]
            if not idle:
                await self.changed.wait()
                continue
            oldest = min(idle, key=lambda each: self.last_used.get(each.model, 0.0))
            await neuron.unload(oldest.model)
        await neuron.load(model, device)

    def _device(self, mb: int) -> int:
        """The device with room, else the one whose models were used longest ago."""
        devices = range(len(self.neuron.spec.devices))
        able = [i for i in devices if self.neuron.spec.devices[i] >= mb]
        fits = [i for i in able if self.neuron.free(i) >= mb]
        if fits:
            return max(fits, key=self.neuron.free)
        return min(able, key=self.oldest)

    def oldest(self, device: int) -> float:
        used = [
            self.last_used.get(each.model, 0.0)
            for each in self.neuron.hosted.values()
            if each.device == device
        ]
        return min(used, default=0.0)


class FirstComeFirstServed:
    """Runs a scenario over the same simulated neurons, and knows at once what they hold."""

    def __init__(self, scenario: Scenario, patience: float) -> None:
        self.scenario = scenario
        self.patience = patience
        self.outcome = Outcome("first come, first served")
        self.neurons = neurons_of(scenario, lambda *_: None)
        self.lines = {name: _Line(neuron) for name, neuron in self.neurons.items()}
        self.pinned = {model.name: model.pinned_on for model in scenario.models}
        self.sizes = {model.name: model.mb for model in scenario.models}

    async def run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            for line in self.lines.values():
                nursery.start_soon(line.run)
            started = trio.current_time()
            async with trio.open_nursery() as clients:
                for outage in self.scenario.outages:
                    clients.start_soon(self._outage, outage, started)
                for arrival in self.scenario.arrivals:
                    await trio.sleep_until(started + arrival.at)
                    clients.start_soon(self._client, arrival)
            nursery.cancel_scope.cancel()
        return self.outcome.take(self.neurons)

    async def _outage(self, outage, started: float) -> None:
        neuron = self.neurons[outage.node]
        await trio.sleep_until(started + outage.at)
        if not neuron.up:
            return
        neuron.die()
        line = self.lines[outage.node]
        line.tell()
        await trio.sleep(outage.seconds)
        neuron.come_back()
        line.tell()

    async def _client(self, arrival: Arrival) -> None:
        arrival = Arrival(trio.current_time(), arrival.model, arrival.seconds)
        began: list[float] = []
        end = "none"
        for _ in range(ATTEMPTS):
            try:
                end = await self._attempt(arrival, began)
            except CortexError as exc:
                end = exc.error_code or type(exc).__name__
                continue
            break
        self.outcome.add(arrival, end, began[-1] if end == SERVED else None)

    async def _attempt(self, arrival: Arrival, began: list[float]) -> str:
        line = self._choose(arrival.model)
        if line is None:
            return "no_node"
        waiting = _Waiting(arrival)
        line.waiting.append(waiting)
        line.tell()
        with trio.move_on_at(arrival.at + self.patience) as scope:
            await waiting.go.wait()
        if scope.cancelled_caught and not waiting.go.is_set():
            if waiting in line.waiting and line.waiting[0] is not waiting:
                line.waiting.remove(waiting)
                return "timeout"
            await waiting.go.wait()
        if waiting.error is not None:
            raise waiting.error
        model = arrival.model
        try:
            await line.neuron.serve(
                model, arrival.seconds, lambda: began.append(trio.current_time())
            )
        finally:
            line.running[model] -= 1
            line.last_used[model] = trio.current_time()
            line.tell()
        return SERVED

    def _choose(self, model: str) -> _Line | None:
        mb, pins = self.sizes[model], self.pinned[model]
        able = [
            line
            for name, line in self.lines.items()
            if line.neuron.up and max(line.neuron.spec.devices) >= mb and (not pins or name in pins)
        ]
        coming = [
            line
            for line in able
            if model in line.neuron.hosted
            or any(waiting.arrival.model == model for waiting in line.waiting)
        ]
        if coming:
            return min(coming, key=lambda line: len(line.waiting))
        fits = [line for line in able if self._room(line) >= mb and not line.waiting]
        if fits:
            return max(fits, key=self._room)
        return min(able, key=lambda line: (len(line.waiting), self._oldest(line)), default=None)

    def _room(self, line: _Line) -> int:
        return max(line.neuron.free(i) for i in range(len(line.neuron.spec.devices)))

    def _oldest(self, line: _Line) -> float:
        return min((line.oldest(i) for i in range(len(line.neuron.spec.devices))), default=math.inf)
