"""Simulated neurons: memory, loads, seats and failures in virtual time, and what must never happen.

`SimulatedNeuron` knows no policy. `SimulatedControl` is what the gateway asks of neurons, with the
interface of `NeuronControl`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import trio

from cortex.errors import (
    DeviceOutOfMemory,
    LoadFailed,
    ModelNotFound,
    Overloaded,
    UpstreamError,
)
from cortex.wire import neuron as wire
from simulation.scenario import Mishaps, NodeSpec, Scenario

SEATS, QUEUE = 8, 32  # requests a model works on at a time, and lets wait
UNLOAD_SECONDS = 0.5


class Broken(AssertionError):
    """An invariant did not hold."""


@attrs.define(eq=False)
class Hosted:
    """A model on a node."""

    model: str
    mb: int
    device: int
    status: str = wire.LOADING
    requests: int = 0
    seats: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(SEATS))


@attrs.define(eq=False)
class SimulatedNeuron:
    """``told`` hears of each load and unload before it begins, and may object."""

    spec: NodeSpec
    sizes: dict[str, int]
    chance: random.Random
    mishaps: Mishaps
    told: Callable[[str, str, str], None]  # event, node, model
    hosted: dict[str, Hosted] = attrs.field(factory=dict)
    up: bool = True
    nursery: trio.Nursery | None = None  # where it comes back to life after a restart
    loads: int = 0
    unloads: int = 0
    restarts: int = 0
    out_of_memory: int = 0
    _started_at: float = 0.0
    _death: trio.Event = attrs.field(factory=trio.Event)

    @property
    def name(self) -> str:
        return self.spec.name

    def used(self, device: int) -> int:
        return sum(each.mb for each in self.hosted.values() if each.device == device)

    def free(self, device: int) -> int:
        return self.spec.devices[device] - self.used(device)

    async def load(self, model: str, device: int | None) -> Hosted:
        self._check_up()
        known = self.hosted.get(model)
        if known is not None:
            raise Broken(f"{self.name} was told to load {model}, which is {known.status}")
        self.told("load", self.name, model)
        mb = self.sizes[model]
        if device is None:
            device = max(range(len(self.spec.devices)), key=self.free)
        if self.free(device) < mb:
            self.out_of_memory += 1
            raise DeviceOutOfMemory(f"{mb} MiB needed, {self.free(device)} MiB free")
        hosted = self.hosted[model] = Hosted(model, mb, device)
        self.loads += 1
        seconds = mb / self.spec.bandwidth + 1
        if self.chance.random() < self.mishaps.slow_load:
            seconds *= 5
        done = False
        try:
            await self._while_up(seconds)
            if self.chance.random() < self.mishaps.failed_load:
                raise LoadFailed("the dice said so")
            hosted.status, done = wire.LOADED, True
        finally:
            if not done and self.hosted.get(model) is hosted:
                del self.hosted[model]
        return hosted

    async def unload(self, model: str) -> None:
        self._check_up()
        hosted = self.hosted.get(model)
        if hosted is None:
            raise ModelNotFound(f"{model} is not here")
        self.told("unload", self.name, model)
        if hosted.requests:
            raise Broken(f"{model} on {self.name} is unloaded with {hosted.requests} requests")
        hosted.status = wire.UNLOADING
        self.unloads += 1
        await self._while_up(UNLOAD_SECONDS)
        self.hosted.pop(model, None)

    def restart(self) -> None:
        """Begin anew, and load what was there again, one model after the other."""
        self._check_up()
        for hosted in self.hosted.values():
            if hosted.requests or hosted.status != wire.LOADED:
                raise Broken(f"{self.name} is restarted while {hosted.model} is in use")
        self.restarts += 1
        self._started_at = trio.current_time()
        for hosted in self.hosted.values():
            hosted.status = wire.RECOVERING
        assert self.nursery is not None
        self.nursery.start_soon(self._recover, tuple(self.hosted.values()))

    async def _recover(self, models: tuple[Hosted, ...]) -> None:
        try:
            for hosted in models:
                await self._while_up(hosted.mb / self.spec.bandwidth + 1)
                hosted.status = wire.LOADED
        except UpstreamError:
            pass  # it has died on the way

    async def serve(self, model: str, seconds: float, began: Callable[[], None]) -> None:
        """Answer a request; *began* is called when it has got its seat."""
        self._check_up()
        hosted = self.hosted.get(model)
        if hosted is None or hosted.status != wire.LOADED:
            raise ModelNotFound(f"{model} is not loaded on {self.name}")
        if hosted.requests >= SEATS + QUEUE:
            raise Overloaded("the queue is full", retry_after=1)
        hosted.requests += 1
        death = self._death
        try:
            async with hosted.seats:
                if death.is_set():
                    raise UpstreamError(f"{self.name} has died")
                began()
                await self._while_up(seconds)
        finally:
            hosted.requests -= 1

    def die(self) -> None:
        self.up = False
        self.hosted.clear()
        death, self._death = self._death, trio.Event()
        death.set()

    def come_back(self) -> None:
        self.up = True
        self._started_at = trio.current_time()

    def health(self) -> wire.Health:
        self._check_poll()
        devices = tuple(
            wire.DeviceHealth(i, vram_free_mb=self.free(i)) for i in range(len(self.spec.devices))
        )
        models = tuple(
            wire.ModelLoad(
                each.model,
                in_flight=min(each.requests, SEATS),
                queue_depth=max(0, each.requests - SEATS),
                max_in_flight=SEATS,
                max_queue_depth=QUEUE,
            )
            for each in self.hosted.values()
            if each.status == wire.LOADED
        )
        uptime = trio.current_time() - self._started_at
        recovering = any(each.status == wire.RECOVERING for each in self.hosted.values())
        status = wire.RECOVERING if recovering else "ok"
        return wire.Health(uptime, status, devices=devices, models=models)

    def models(self) -> tuple[wire.Model, ...]:
        self._check_poll()
        return tuple(
            wire.Model(each.model, each.status, devices=(each.device,), vram_used_mb=each.mb)
            for each in self.hosted.values()
        )

    async def _while_up(self, seconds: float) -> None:
        """Sleep; `UpstreamError` if the node dies meanwhile."""
        death = self._death
        with trio.move_on_after(seconds):
            await death.wait()
            raise UpstreamError(f"{self.name} has died")

    def _check_up(self) -> None:
        if not self.up:
            raise UpstreamError(f"{self.name} cannot be reached")

    def _check_poll(self) -> None:
        self._check_up()
        if self.chance.random() < self.mishaps.lost_poll:
            raise UpstreamError(f"the answer of {self.name} got lost")


@attrs.define(eq=False)
class SimulatedControl:
    """The management calls of a gateway, answered by `SimulatedNeuron`s."""

    neurons: dict[str, SimulatedNeuron]

    async def discovery(self, node: str) -> wire.Discovery:
        await self._reached(node)
        devices = self.neurons[node].spec.devices
        told = tuple(wire.Device(i, "simulated", vram_total_mb=mb) for i, mb in enumerate(devices))
        return wire.Discovery(node, "linux", "6", told)

    async def version(self, node: str) -> wire.Version:
        await self._reached(node)
        return wire.Version("0.0-simulated")

    async def health(self, node: str) -> wire.Health:
        await trio.lowlevel.checkpoint()
        return self.neurons[node].health()

    async def models(self, node: str) -> tuple[wire.Model, ...]:
        await trio.lowlevel.checkpoint()
        return self.neurons[node].models()

    async def endpoint(self, node: str, model_id: str) -> str:
        await self._reached(node)
        return f"http://{node}:1"

    async def load(self, node: str, request: wire.LoadRequest) -> wire.LoadAnswer:
        await trio.lowlevel.checkpoint()
        device = request.devices[0] if request.devices else None
        hosted = await self.neurons[node].load(request.model_id, device)
        model = wire.Model(
            hosted.model, wire.LOADED, devices=(hosted.device,), vram_used_mb=hosted.mb
        )
        return wire.LoadAnswer(wire.LOADED, model)

    async def unload(self, node: str, model_id: str) -> None:
        await trio.lowlevel.checkpoint()
        await self.neurons[node].unload(model_id)

    async def restart(self, node: str) -> None:
        await trio.lowlevel.checkpoint()
        self.neurons[node].restart()

    async def estimate(self, node: str, request: wire.LoadRequest) -> wire.Estimate:
        await self._reached(node)
        raise ModelNotFound("no estimate here")

    async def _reached(self, node: str) -> None:
        await trio.lowlevel.checkpoint()
        if not self.neurons[node].up:
            raise UpstreamError(f"{node} cannot be reached")


def neurons_of(
    scenario: Scenario, told: Callable[[str, str, str], None]
) -> dict[str, SimulatedNeuron]:
    sizes = {model.name: model.mb for model in scenario.models}
    return {
        spec.name: SimulatedNeuron(
            spec, sizes, random.Random(f"{scenario.seed}/{spec.name}"), scenario.mishaps, told
        )
        for spec in scenario.nodes
    }
