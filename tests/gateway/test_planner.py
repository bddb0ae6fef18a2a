"""Evictions, hand-overs and their owners, over fake neurons with little memory."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from fakes.control_plane import ControlPlane, control_plane
from fakes.neuron import FakeNeuron, Reply, error_reply, json_reply

from cortex import errors
from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings

RULES = EvictionSettings(keep_alive=-1, min_residency_seconds=60, max_wait_seconds=30)
BIG = 1000  # MiB; a neuron has room for one model
MODELS = tuple(CatalogueEntry(name, vram_mb=BIG) for name in ("a", "b", "c"))


def small_neuron(name: str = "n", free: int = 1500, **sizes: int) -> FakeNeuron:
    taken = {"a": BIG, "b": BIG, "c": BIG, **sizes}
    return FakeNeuron(name, free_mb={0: free}, sizes=taken)


@asynccontextmanager
async def planned(*neurons: FakeNeuron, models=MODELS, **options):
    async with control_plane(
        *neurons, models=models, eviction=RULES, poll_seconds=6, **options
    ) as plane:
        yield plane


async def use(plane: ControlPlane, model: str, seconds: float = 0.0) -> str:
    """One request; the node it went to."""
    async with plane.router.route(model) as lease:
        await trio.sleep(seconds)
        return lease.node


async def refused(plane: ControlPlane, model: str) -> None:
    with pytest.raises(errors.Unavailable, match="no neuron has room"):
        await use(plane, model)


def loads(*neurons: FakeNeuron) -> list[str]:
    return [
        asked.json["model_id"]
        for neuron in neurons
        for asked in neuron.requests
        if asked.path == "/models/load"
    ]


def evictions(plane: ControlPlane, model: str, reason: str, node: str = "n") -> float:
    return plane.sample("cortex_evictions_total", model=model, node=node, reason=reason)


# Room by eviction


async def test_an_idle_model_leaves_for_one_that_is_asked_for(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        await use(plane, "a")
        await trio.sleep(100)
        assert await use(plane, "b") == "n"
        assert set(neuron.models) == {"b"}
        assert evictions(plane, "a", "room") == 1
        assert plane.sample("cortex_cold_starts_total", model="b", node="n") == 1


async def test_a_fresh_model_stays_for_its_residency(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        await use(plane, "a")
        await trio.sleep(10)
        started = trio.current_time()
        await use(plane, "b")
        assert 29 < trio.current_time() - started < 32  # handed over, since somebody waits
        assert evictions(plane, "a", "hand_over") == 1


async def test_of_a_fleet_the_idle_model_leaves_not_the_one_in_use(patient_clock):
    neurons = small_neuron("n"), small_neuron("o")
    async with planned(*neurons) as plane:
        for model in ("a", "b"):
            await use(plane, model)
        await trio.sleep(100)
        where = await use(plane, "a")
        async with plane.router.route("a"):
            assert await use(plane, "c") != where
        assert not any(neuron.counts["/models/unload"] > 1 for neuron in neurons)


@pytest.mark.parametrize("pinned", ["by the catalogue", "unlisted"])
async def test_what_is_held_is_never_evicted(patient_clock, pinned):
    neuron = small_neuron(default=BIG)
    models = MODELS
    if pinned == "unlisted":
        neuron.hold("default")
    else:
        models = (CatalogueEntry("a", vram_mb=BIG, pinned_on=("n",)), *MODELS[1:])
    async with planned(neuron, models=models) as plane:
        await use(plane, "default" if pinned == "unlisted" else "a")
        await trio.sleep(100)
        with pytest.raises(errors.Unavailable, match="no neuron has room for b"):
            await use(plane, "b")
        assert neuron.counts["/models/unload"] == 0


async def test_a_model_others_loaded_may_leave_if_the_catalogue_has_it(patient_clock):
    neuron = small_neuron()
    neuron.hold("a")
    async with planned(neuron) as plane:
        assert await use(plane, "b") == "n"
        assert set(neuron.models) == {"b"}


async def test_requests_of_other_gateways_keep_a_model(patient_clock):
    neuron = small_neuron()
    neuron.hold("a")
    neuron.model_loads = [{"id": "a", "in_flight": 1}]
    async with planned(neuron, load_wait_seconds=100) as plane:
        with pytest.raises(errors.ModelLoading):
            await use(plane, "b")
        assert neuron.counts["/models/unload"] == 0


async def test_memory_that_comes_free_late_is_waited_for(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        await use(plane, "a")
        await trio.sleep(100)
        seen = []

        def unload(asked):
            neuron.models.pop(asked.json["model_id"])
            return json_reply({"status": "unloaded"})  # its memory stays taken

        def load(asked):
            seen.append(neuron.free_mb[0])

        neuron.scripts["/models/unload"], neuron.scripts["/models/load"] = unload, load

        async def free() -> None:
            await trio.sleep(5)
            neuron.free_mb[0] += BIG

        plane.nursery.start_soon(free)
        await use(plane, "b")
        assert seen == [1500]


async def test_when_memory_never_comes_free_the_neuron_judges(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        await use(plane, "a")
        await trio.sleep(100)

        def unload(asked):
            neuron.models.pop(asked.json["model_id"])
            return json_reply({"status": "unloaded"})

        neuron.scripts["/models/unload"] = unload
        started = trio.current_time()
        assert await use(plane, "b") == "n"
        assert 15 <= trio.current_time() - started < 17


async def test_an_eviction_that_fails_is_told_or_tried_elsewhere(patient_clock):
    neuron, other = small_neuron("n"), small_neuron("o", free=10)
    async with planned(neuron, other) as plane:
        await use(plane, "a")
        await trio.sleep(100)
        neuron.scripts["/models/unload"] = lambda asked: error_reply(500, "internal_error")
        with pytest.raises(errors.LoadFailed, match="loading b on n failed"):
            await use(plane, "b")
        assert await use(plane, "a") == "n"  # still there, still open
        other.free_mb[0] = 5000
        await trio.sleep(8)
        assert await use(plane, "b") == "o"


# Hand-overs


async def test_a_busy_model_finishes_then_leaves_and_comes_back_in_turn(patient_clock):
    neuron = small_neuron()
    order = []
    async with planned(neuron) as plane:

        async def ask(model: str, seconds: float) -> None:
            async with plane.router.route(model):
                order.append(model)
                await trio.sleep(seconds)
                assert model in neuron.models  # never cut off

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a", 80)
            await trio.sleep(5)
            nursery.start_soon(ask, "b", 1)
            await trio.sleep(20)
            nursery.start_soon(ask, "a", 1)  # still taken in
            await trio.sleep(20)
            assert order == ["a", "a"]
            nursery.start_soon(ask, "a", 1)  # closed: it waits for its turn
            await trio.sleep(20)
            assert order == ["a", "a"]
        assert order == ["a", "a", "b", "a"]
        assert loads(neuron) == ["a", "b", "a"]
        assert evictions(plane, "a", "hand_over") == 1


async def test_models_that_take_turns_are_not_loaded_for_each_request(patient_clock):
    neuron = small_neuron()
    served = []
    async with planned(neuron) as plane:

        async def ask(model: str) -> None:
            await use(plane, model, 1)
            served.append(model)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                for model in "abaacabc":
                    nursery.start_soon(ask, model)
                    await trio.sleep(0.5)
        assert len(served) == 24
        assert len(loads(neuron)) <= 4  # as they come: 21


async def test_everybody_who_waited_has_left_and_the_model_is_open_again(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        async with plane.router.route("a"):
            with trio.move_on_after(40):
                await use(plane, "b")
            assert plane.router._loads.handing_over("n", "a")
            await trio.sleep(15)
            assert not plane.router._loads.handing_over("n", "a")
            assert await use(plane, "a") == "n"
        assert loads(neuron) == ["a"]


async def test_a_pin_set_while_a_model_finishes_keeps_it(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        async with plane.router.route("a"), trio.open_nursery() as nursery:
            nursery.start_soon(refused, plane, "b")
            await trio.sleep(40)
            assert plane.router._loads.handing_over("n", "a")
            plane.pins.pin("a")
            await trio.sleep(10)
            assert not plane.router._loads.handing_over("n", "a")
        assert loads(neuron) == ["a"]


async def test_who_comes_back_soon_keeps_his_place(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane, plane.router.route("a"):
        for _ in range(3):  # a client with a short patience
            with trio.move_on_after(12):
                await use(plane, "b")
            await trio.sleep(1)
        assert plane.router._loads.handing_over("n", "a")


async def test_room_elsewhere_ends_a_hand_over(patient_clock):
    neuron, other = small_neuron("n"), small_neuron("o", free=10)
    async with planned(neuron, other) as plane:
        async with plane.router.route("a"), trio.open_nursery() as nursery:
            nursery.start_soon(use, plane, "b")
            await trio.sleep(40)
            assert plane.router._loads.handing_over("n", "a")
            other.free_mb[0] = 5000
            await plane.seen(lambda fleet: fleet.node("o").model("b") is not None)
            assert not plane.router._loads.handing_over("n", "a")
            assert await use(plane, "a") == "n"
        assert loads(neuron) == ["a"]


async def test_a_closed_model_is_loaded_elsewhere_if_there_is_room(patient_clock):
    neuron, other = small_neuron("n"), small_neuron("o")
    elsewhere = CatalogueEntry("b", vram_mb=BIG, pinned_on=("n",))
    async with (
        planned(neuron, other, models=(MODELS[0], elsewhere)) as plane,
        plane.router.route("a") as lease,
        trio.open_nursery() as nursery,
    ):
        assert lease.node == "n"
        nursery.start_soon(use, plane, "b")
        await trio.sleep(40)
        assert await use(plane, "a") == "o"
        nursery.cancel_scope.cancel()


async def test_nobody_takes_the_room_that_is_being_made_for_another(patient_clock):
    neuron = small_neuron(free=2400, huge=2000)
    huge = CatalogueEntry("huge", vram_mb=2000)
    async with planned(neuron, models=(*MODELS, huge)) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, plane, "a", 60)
            await trio.sleep(1)
            nursery.start_soon(use, plane, "huge", 1)
            await trio.sleep(40)
            nursery.start_soon(use, plane, "b")  # would fit beside "a"
            await trio.sleep(5)
            assert loads(neuron) == ["a"]
        assert loads(neuron) == ["a", "huge", "b"]


async def test_a_node_that_goes_away_while_a_model_finishes_is_given_up(patient_clock):
    neuron, other = small_neuron("n"), small_neuron("o")
    async with planned(neuron, other, models=MODELS) as plane, AsyncExitStack() as held:
        for model in ("a", "b"):
            await held.enter_async_context(plane.router.route(model))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, plane, "c")
            await trio.sleep(40)
            closed = [
                each
                for each in (neuron, other)
                if any(plane.router._loads.handing_over(each.name, m) for m in "ab")
            ]
            assert len(closed) == 1
            closed[0].kill()
            await trio.sleep(60)
            nursery.cancel_scope.cancel()


# One owner a neuron


async def test_on_one_device_loads_come_one_after_the_other_in_order(patient_clock):
    neuron = small_neuron(free=5000)
    neuron.load_gate = trio.Event()
    async with planned(neuron) as plane, trio.open_nursery() as nursery:
        for model in "abc":
            nursery.start_soon(use, plane, model)
            await trio.sleep(1)
        assert loads(neuron) == ["a"]
        assert "another model is being loaded" in plane.router._loads.waiting_for("b")
        assert plane.router.loading("b") == {"stage": "waiting"}
        neuron.load_gate.set()
        await plane.seen(lambda fleet: fleet.node("n").model("c") is not None)
        assert loads(neuron) == ["a", "b", "c"]


async def test_on_two_devices_loads_go_side_by_side(patient_clock):
    neuron = small_neuron()
    neuron.devices = [
        {"index": i, "name": "GPU", "kind": "cuda", "vram_total_mb": 2000} for i in (0, 1)
    ]
    neuron.free_mb[1] = 1400
    neuron.load_gate = trio.Event()
    async with planned(neuron) as plane, trio.open_nursery() as nursery:
        nursery.start_soon(use, plane, "a")
        await trio.sleep(1)
        nursery.start_soon(use, plane, "b")
        await trio.sleep(1)
        asked = [asked.json for asked in neuron.requests if asked.path == "/models/load"]
        assert [each["devices"] for each in asked] == [[0], [1]]
        neuron.load_gate.set()


async def test_an_operators_load_makes_room_and_joins_a_load_under_way(patient_clock):
    neuron = small_neuron()
    async with planned(neuron) as plane:
        await use(plane, "a")
        await trio.sleep(100)
        assert await plane.router.load("b", "n") == "n"
        assert set(neuron.models) == {"b"}
        neuron.load_gate = trio.Event()
        await trio.sleep(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, plane, "c")
            await trio.sleep(5)
            nursery.start_soon(plane.router.load, "c", "n")
            nursery.start_soon(plane.router.load, "c")
            await trio.sleep(5)
            neuron.load_gate.set()
        assert loads(neuron) == ["a", "b", "c"]


async def test_an_operators_unload_calls_a_load_off_for_good(patient_clock):
    neuron, other = small_neuron("n"), small_neuron("o")
    gate = neuron.load_gate = trio.Event()
    other.load_gate = gate
    async with planned(neuron, other) as plane:
        caught = []

        async def ask() -> None:
            with pytest.raises(errors.LoadFailed) as info:
                await use(plane, "a")
            caught.append(info.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await plane.seen(lambda fleet: fleet.node("n").model("a") is not None)
            neuron.load_reply = error_reply(409, "conflict", "cancelled by an unload")
            assert await plane.router.unload("a") == ("n",)
            gate.set()
        assert "cancelled by an unload" in caught[0].message
        assert loads(neuron, other) == ["a"]


async def test_an_unload_waits_for_the_load_of_another_model(patient_clock):
    neuron = small_neuron(free=5000)
    async with planned(neuron) as plane:
        await use(plane, "a")
        neuron.load_gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, plane, "b")
            await trio.sleep(1)
            nursery.start_soon(plane.router.unload, "a")
            await trio.sleep(5)
            assert neuron.counts["/models/unload"] == 0
            neuron.load_gate.set()
        assert set(neuron.models) == {"b"}


# Sizes


async def test_a_size_nobody_has_stated_is_asked_for_once(patient_clock):
    neuron = small_neuron(x=BIG)
    estimate = {
        "model_id": "x",
        "rows": {"weights": 900 << 20, "kv": 5000 << 20},
        "total_bytes": 5900 << 20,
        "context": 4096,
        "trained_context": 4096,
        "kv_bytes_per_token": 25 << 10,
    }
    neuron.scripts["/models/estimate"] = lambda asked: json_reply(estimate)
    async with planned(neuron, models=(*MODELS, CatalogueEntry("x", source="s"))) as plane:
        await use(plane, "a")
        await trio.sleep(100)
        await use(plane, "x")  # which takes 1000 MiB, so "a" has to leave first
        assert set(neuron.models) == {"x"}
        assert neuron.last("/models/estimate").json == {"model_id": "x", "source": "s"}
        await plane.router.unload("x")
        await use(plane, "x")
        assert neuron.counts["/models/estimate"] == 1


async def test_a_model_that_fits_with_a_shorter_context_is_loaded(patient_clock):
    neuron = small_neuron(free=24_000)
    estimate = {
        "model_id": "x",
        "rows": {"weights": 20_000 << 20, "kv": 0},
        "total_bytes": 20_000 << 20,
        "context": 512,
        "trained_context": 100_000,
        "kv_bytes_per_token": 1 << 20,
    }
    neuron.scripts["/models/estimate"] = lambda asked: json_reply(estimate)
    async with planned(neuron, models=(CatalogueEntry("x"),)) as plane:
        assert await use(plane, "x") == "n"


async def test_an_estimate_that_does_not_come_is_not_waited_for_long(patient_clock):
    neuron = small_neuron()
    neuron.scripts["/models/estimate"] = lambda asked: Reply(frames=(trio.Event(),))
    async with planned(neuron, models=(CatalogueEntry("x"),)) as plane:
        with trio.fail_after(12):
            assert await use(plane, "x") == "n"


async def test_a_neuron_that_has_no_room_teaches_how_much_is_needed(patient_clock):
    neuron = small_neuron(free=1500, x=1400)
    async with planned(neuron, models=(*MODELS, CatalogueEntry("x"))) as plane:
        await use(plane, "a")
        await trio.sleep(100)

        def load(asked):
            if neuron.free_mb[0] < 1400:
                return error_reply(503, "insufficient_memory", "no room")
            return None

        neuron.scripts["/models/load"] = load
        with pytest.raises(errors.LoadFailed, match="no room"):
            await use(plane, "x")
        await trio.sleep(6)
        assert await use(plane, "x") == "n"
        assert set(neuron.models) == {"x"}
