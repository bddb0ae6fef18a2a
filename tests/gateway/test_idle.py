from __future__ import annotations

import pytest
import trio
from fakes.control_plane import control_plane
from fakes.neuron import FakeNeuron, error_reply

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.idle import has_expired

ENTRY = CatalogueEntry("m", vram_mb=1000)


@pytest.mark.parametrize(
    ("keep_alive", "last_used", "requests", "expected"),
    [
        (30, 69, 0, True),
        (30, 71, 0, False),
        (30, 0, 1, False),  # busy
        (-1, 0, 0, False),  # never
        (0, 100, 0, True),  # at once
        (0, None, 0, False),  # not used by this gateway
    ],
)
def test_idle_time_is_measured_against_keep_alive(keep_alive, last_used, requests, expected):
    assert has_expired(keep_alive, last_used, 100.0, requests) is expected


async def test_a_model_is_unloaded_after_its_keep_alive_and_not_while_in_use(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(ENTRY,), keep_alive=20) as plane:
        async with plane.router.route("m"):
            await trio.sleep(60)
            assert "m" in neuron.models
        await trio.sleep(18)
        assert "m" in neuron.models
        await trio.sleep(5)
        assert "m" not in neuron.models
        assert plane.sample("cortex_evictions_total", model="m", node="a", reason="idle") == 1
        async with plane.router.route("m") as lease:  # and back it comes
            assert lease.cold_start


async def test_the_catalogues_keep_alive_comes_first(patient_clock):
    never = CatalogueEntry("m", vram_mb=1000, keep_alive=-1)
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(never,), keep_alive=1) as plane:
        async with plane.router.route("m"):
            pass
        await trio.sleep(30)
        assert "m" in neuron.models


async def test_requests_of_others_keep_a_model(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(ENTRY,), keep_alive=5) as plane:
        async with plane.router.route("m"):
            pass
        neuron.model_loads = [{"id": "m", "in_flight": 1}]
        plane.poller.probe_now("a")
        await trio.sleep(30)
        assert "m" in neuron.models
        neuron.model_loads = []
        await trio.sleep(5)
        assert "m" not in neuron.models


async def test_pinned_models_and_those_that_others_loaded_stay(patient_clock):
    pinned = CatalogueEntry("pinned", vram_mb=1000, pinned_on=("a",))
    neuron = FakeNeuron("a")
    neuron.hold("default")
    async with control_plane(neuron, models=(pinned,), keep_alive=1) as plane:
        for name in ("pinned", "default"):
            async with plane.router.route(name):
                pass
        await trio.sleep(30)
        assert set(neuron.models) == {"pinned", "default"}


async def test_a_model_pinned_at_run_time_stays_until_it_is_unpinned(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(ENTRY,), keep_alive=5) as plane:
        async with plane.router.route("m"):
            assert plane.router.expires_in("a", "m") == 5
        await trio.sleep(2)
        left = plane.router.expires_in("a", "m")
        assert left == pytest.approx(3, abs=0.5)
        plane.pins.pin("m", "a")
        assert plane.router.expires_in("a", "m") is None
        await trio.sleep(30)
        assert "m" in neuron.models
        plane.pins.unpin("m")
        await trio.sleep(3)
        assert "m" not in neuron.models


async def test_an_unload_that_fails_ends_nothing(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(ENTRY,), keep_alive=1) as plane:
        async with plane.router.route("m"):
            pass
        neuron.scripts["/models/unload"] = lambda asked: error_reply(500, "internal_error")
        await trio.sleep(10)
        assert "m" in neuron.models
        assert plane.sample("cortex_evictions_total", model="m", node="a", reason="idle") == 0
        del neuron.scripts["/models/unload"]
        await trio.sleep(10)
        assert "m" not in neuron.models
