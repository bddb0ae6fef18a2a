from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from fakes.control_plane import ControlPlane, control_plane
from fakes.neuron import FakeNeuron, error_reply

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings

MODELS = (CatalogueEntry("m", vram_mb=1000), CatalogueEntry("kept", vram_mb=1000))


@asynccontextmanager
async def planned(neuron: FakeNeuron, after: int = 2):
    rules = EvictionSettings(keep_alive=-1, defrag_after_cycles=after)
    async with control_plane(neuron, models=MODELS, eviction=rules, poll_seconds=15) as plane:
        yield plane


async def cycle(plane: ControlPlane, times: int) -> None:
    for _ in range(times):
        await plane.router.load("m")
        await plane.router.unload("m")


async def use(plane: ControlPlane, model: str = "kept", seconds: float = 0.0) -> None:
    async with plane.router.route(model):
        await trio.sleep(seconds)


async def test_after_so_many_cycles_an_idle_neuron_is_restarted_once(patient_clock):
    neuron = FakeNeuron("n")
    async with planned(neuron) as plane:
        await cycle(plane, 1)
        await trio.sleep(90)
        assert neuron.counts["/restart"] == 0
        await cycle(plane, 1)
        await trio.sleep(90)
        assert neuron.counts["/restart"] == 1
        await cycle(plane, 1)
        await trio.sleep(90)
        assert neuron.counts["/restart"] == 1


@pytest.mark.parametrize("after", [0, 50])
async def test_never_or_not_yet(patient_clock, after):
    neuron = FakeNeuron("n")
    async with planned(neuron, after) as plane:
        await cycle(plane, 3)
        await trio.sleep(90)
        assert neuron.counts["/restart"] == 0


async def test_a_neuron_in_use_or_used_lately_is_left_alone(patient_clock):
    neuron = FakeNeuron("n")
    async with planned(neuron) as plane:
        await cycle(plane, 2)
        for _ in range(3):
            await use(plane, seconds=40)
            await trio.sleep(40)
        assert neuron.counts["/restart"] == 0
        await trio.sleep(100)
        assert neuron.counts["/restart"] == 1


async def test_requests_wait_for_the_models_to_be_back(patient_clock):
    neuron = FakeNeuron("n")
    async with planned(neuron) as plane:
        await use(plane)
        await cycle(plane, 2)
        loads = neuron.counts["/models/load"]

        def restart(asked):
            del neuron.models["kept"]
            neuron.health_status = "recovering"

        neuron.scripts["/restart"] = restart

        async def come_back() -> None:
            await plane.seen(lambda _: neuron.counts["/restart"] == 1)
            await trio.sleep(20)
            neuron.hold("kept")
            neuron.health_status = "ok"

        await trio.sleep(50)
        plane.nursery.start_soon(come_back)
        await plane.seen(lambda _: neuron.counts["/restart"] == 1)
        await trio.sleep(1)
        started = trio.current_time()
        await use(plane)
        assert 15 < trio.current_time() - started < 40
        assert neuron.counts["/models/load"] == loads  # the neuron does that itself
        await trio.sleep(100)
        await use(plane)
        assert plane.router._loads.owners.of("n").free(None)


async def test_a_neuron_that_cannot_is_not_asked_all_the_time(patient_clock):
    neuron = FakeNeuron("n")
    neuron.scripts["/restart"] = lambda asked: error_reply(404, "not_found")
    async with planned(neuron) as plane:
        await cycle(plane, 2)
        await trio.sleep(150)
        assert neuron.counts["/restart"] == 1
        await use(plane)


async def test_a_neuron_that_never_comes_back_gives_its_claim_back(patient_clock):
    neuron = FakeNeuron("n")

    def restart(asked):
        neuron.models.clear()
        neuron.health_status = "recovering"

    neuron.scripts["/restart"] = restart
    async with planned(neuron) as plane:
        await use(plane)
        await cycle(plane, 2)
        await trio.sleep(100)
        assert not plane.router._loads.owners.of("n").free(None)
        await trio.sleep(700)
        assert plane.router._loads.owners.of("n").free(None)
