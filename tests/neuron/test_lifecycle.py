"""The state of models, with fake files and engines on real device threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import attrs
import pytest
import trio
import trio.testing
from fakes.engine import FakeCheckpoints, FakeDeviceFault, FakeEngine, request
from fakes.lifecycle import MIB, FakeSources, House, TextReader, load_request, slot
from fakes.served_neuron import demo_text

from cortex.errors import (
    BadRequest,
    CheckpointError,
    Conflict,
    CortexError,
    DeviceLost,
    DeviceOutOfMemory,
    Draining,
    InternalError,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    SourceUnavailable,
    Unavailable,
    UnsupportedLoad,
)
from cortex.text.tools.formats import BY_NAME
from cortex.wire import neuron as wire


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.001)


def gated() -> House:
    """A house where loads stand still in their first shard."""
    return House(checkpoints=FakeCheckpoints(gate=threading.Event()))


def release(house: House) -> None:
    assert house.checkpoints.gate is not None
    house.checkpoints.gate.set()


async def test_a_loaded_model_serves_and_tells_the_truth_about_itself() -> None:
    house = House()
    async with house.open() as lifecycle:
        model = await lifecycle.load(load_request())
        assert model.status == wire.LOADED
        assert model.vram_used_mb == 12
        assert model.limit == wire.Limit(context=1000)
        assert model.architecture == "qwen3"
        assert model.dtype == "float32"
        assert model.devices == (0,)
        assert model.tool_call is True
        assert model.reasoning is False
        assert model.capabilities == ("text", "chat", "tools")
        assert model.servable == wire.Servable(ok=True)
        assert lifecycle.models() == (model,)
        with lifecycle.lease("org/a") as loaded:
            assert (loaded.max_context, loaded.trained_context) == (1000, 4096)
            async with loaded.engine.stream(request("r")) as stream:
                assert sum([len(events) async for events in stream]) == 3
        (load,) = lifecycle.loads()
        assert (load.id, load.in_flight, load.kv_blocks_total) == ("org/a", 0, 100)
        assert house.slots[0].ledger.rows() == {
            "org/a": {"weights": 4 * MIB, "kv": 8 * MIB, "workspace": MIB}
        }


async def test_loading_what_is_loaded_is_success_and_loads_nothing() -> None:
    house = House()
    async with house.open() as lifecycle:
        first = await lifecycle.load(load_request())
        assert await lifecycle.load(load_request()) == first
        assert lifecycle.start_load(load_request()) == first
        assert house.checkpoints.opens == ["org--a"]


async def test_joiners_share_one_load_that_goes_on_when_they_leave() -> None:
    house = gated()
    async with house.open() as lifecycle:
        models: list[wire.Model] = []

        async def join() -> None:
            models.append(await lifecycle.load(load_request()))

        with trio.move_on_after(0.02) as scope:
            await lifecycle.load(load_request())
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(join)
            await trio.testing.wait_all_tasks_blocked()
            release(house)
        assert len(models) == 20
        assert house.checkpoints.opens == ["org--a"]
        assert house.checkpoints.cancellations == []


async def test_a_load_with_no_waiter_left_is_finished_all_the_same() -> None:
    house = gated()
    async with house.open() as lifecycle:
        with trio.move_on_after(0.02):
            await lifecycle.load(load_request())
        release(house)
        await until(lambda: house.status("org/a") == wire.LOADED)


async def test_a_model_on_its_way_shows_its_progress_and_answers_at_once() -> None:
    house = gated()
    async with house.open() as lifecycle:
        model = lifecycle.start_load(load_request())
        assert model.status == wire.LOADING
        assert model.vram_used_mb is None
        await until(house.checkpoints.loading.is_set)
        (model,) = lifecycle.models()
        assert model.progress is not None
        assert (model.progress.stage, model.progress.bytes_total) == ("weights", 4 * MIB)
        assert model.servable == wire.Servable(ok=False, reason="loading")
        with pytest.raises(ModelLoading) as caught, lifecycle.lease("org/a"):
            pytest.fail("leased while loading")
        assert caught.value.extras["loading"]["stage"] == "weights"
        release(house)


async def test_the_download_is_part_of_the_progress() -> None:
    house = House(sources=FakeSources(gate=trio.Event()))
    async with house.open() as lifecycle:
        lifecycle.start_load(load_request())
        await trio.testing.wait_all_tasks_blocked()
        house.now += 10
        (model,) = lifecycle.models()
        assert model.progress == wire.Progress("download", 1, 4, eta_seconds=30.0)


async def test_different_models_load_side_by_side() -> None:
    house = House(sources=FakeSources(gate=trio.Event()))
    async with house.open() as lifecycle:
        lifecycle.start_load(load_request("org/a"))
        lifecycle.start_load(load_request("org/b"))
        await trio.testing.wait_all_tasks_blocked()
        assert house.sources.calls == [("org/a", "all"), ("org/b", "all")] or (
            house.sources.calls == [("org/b", "all"), ("org/a", "all")]
        )
        assert house.sources.gate is not None
        house.sources.gate.set()
        await lifecycle.load(load_request("org/a"))
        await lifecycle.load(load_request("org/b"))
        assert house.used() == 26 * MIB


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tensor_parallel": 2}, "tensor_parallel"),
        ({"harness": "llamacpp"}, "harness"),
        ({"tool_format": "morse"}, "tool_format"),
    ],
)
async def test_what_this_build_cannot_do_is_refused_before_anything_begins(
    options: dict[str, object], param: str
) -> None:
    house = House()
    async with house.open() as lifecycle:
        for call in (lifecycle.load, lifecycle.estimate):
            with pytest.raises(UnsupportedLoad) as caught:
                await call(load_request(**options))
            assert caught.value.param == param
        assert lifecycle.models() == ()
        assert house.sources.calls == []


async def test_a_named_tool_format_wins_over_the_templates() -> None:
    house = House(read_text=lambda _: demo_text())  # type: ignore[arg-type]
    async with house.open() as lifecycle:
        plain = await lifecycle.load(load_request("a"))
        named = await lifecycle.load(load_request("b", tool_format="mistral_v11"))
        assert (plain.tool_format, named.tool_format) == ("hermes", "mistral_v11")
        assert plain.tool_call
        assert named.tool_call
        text = await lifecycle.text_of("b")
        assert text.tool_format is BY_NAME["mistral_v11"]
        assert (await lifecycle.text_of("a")).tool_format is BY_NAME["hermes"]
        with pytest.raises(UnsupportedLoad, match="hermes") as caught:
            await lifecycle.text_of(load_request("c", tool_format="morse"))
        assert caught.value.status == 422
        with pytest.raises(Conflict, match="tool_format"):
            await lifecycle.load(load_request("b", tool_format="hermes"))


async def test_harness_names_of_this_engine_are_taken() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request("a", harness="candle", tensor_parallel=1))
        await lifecycle.load(load_request("b", harness="torch"))


@pytest.mark.parametrize("devices", [(1,), (0, 7), ()])
async def test_devices_that_do_not_exist_are_a_bad_request(devices: tuple[int, ...]) -> None:
    house = House()
    async with house.open() as lifecycle:
        with pytest.raises(BadRequest) as caught:
            await lifecycle.load(load_request(devices=devices))
        assert caught.value.param == "devices"
        assert lifecycle.models() == ()


async def test_a_model_goes_to_the_freest_device_it_may_use() -> None:
    house = House(slots=(slot(0), slot(1, total=80 * MIB), slot(2)))
    async with house.open() as lifecycle:
        where = [
            (await lifecycle.load(load_request(name, devices=devices))).devices
            for name, devices in (("a", None), ("b", None), ("c", (0, 2)), ("d", (0, 2)))
        ]
    # 64, 80, 64 MiB; each takes 13; the lower index wins a tie.
    assert where == [(1,), (1,), (0,), (2,)]


async def test_what_does_not_fit_is_refused_with_the_numbers_and_takes_nothing() -> None:
    house = House(slots=(slot(0, total=20 * MIB),))
    async with house.open() as lifecycle:
        await lifecycle.load(load_request("a"))
        with pytest.raises(DeviceOutOfMemory) as caught:
            await lifecycle.load(load_request("b"))
        assert caught.value.extras == {"required_mb": 13, "free_mb": 7}
        assert house.status("b") == wire.FAILED
        assert house.used() == 13 * MIB
        await lifecycle.unload("a")
        await lifecycle.load(load_request("b"))


async def test_two_loads_at_once_do_not_promise_the_same_memory_twice() -> None:
    house = House(
        slots=(slot(0, total=20 * MIB),), checkpoints=FakeCheckpoints(gate=threading.Event())
    )
    async with house.open() as lifecycle:
        lifecycle.start_load(load_request("a"))
        lifecycle.start_load(load_request("b"))
        await until(lambda: wire.FAILED in {house.status("a"), house.status("b")})
        release(house)
        await until(lambda: {house.status("a"), house.status("b")} == {wire.FAILED, wire.LOADED})


@pytest.mark.parametrize("where", ["source", "plan", "open"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CheckpointError("truncated"), CheckpointError),
        (SourceUnavailable("hub is down"), SourceUnavailable),
        (ZeroDivisionError("a bug"), LoadFailed),
    ],
)
async def test_a_failed_load_is_told_shown_and_tried_again(
    where: str, error: Exception, raised: type[CortexError]
) -> None:
    house = House()
    if where == "source":
        house.sources.errors.append(error)
    elif where == "plan":
        house.checkpoints.plan_errors["org--a"] = error
    else:
        house.checkpoints.open_errors["org--a"] = error
    async with house.open() as lifecycle:
        with pytest.raises(raised) as caught:
            await lifecycle.load(load_request())
        (model,) = lifecycle.models()
        assert model.status == wire.FAILED
        assert model.error == caught.value.message
        with pytest.raises(LoadFailed), lifecycle.lease("org/a"):
            pytest.fail("leased")
        assert house.used() == 0
        house.checkpoints.plan_errors.clear()
        house.checkpoints.open_errors.clear()
        assert (await lifecycle.load(load_request())).status == wire.LOADED


async def test_each_waiter_of_a_failed_load_gets_an_error_of_its_own() -> None:
    house = gated()
    house.checkpoints.make = lambda _: (_ for _ in ()).throw(CheckpointError("truncated"))
    async with house.open() as lifecycle:
        errors: list[CortexError] = []

        async def join() -> None:
            try:
                await lifecycle.load(load_request())
            except CheckpointError as exc:
                errors.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(join)
            await until(house.checkpoints.loading.is_set)
            release(house)
        assert len({id(error) for error in errors}) == 3
        assert {error.message for error in errors} == {"truncated"}


async def test_a_failure_is_forgotten_after_a_while_or_by_an_unload() -> None:
    house = House()
    house.sources.errors += [SourceUnavailable("down"), SourceUnavailable("down")]
    async with house.open() as lifecycle:
        for name in ("a", "b"):
            with pytest.raises(SourceUnavailable):
                await lifecycle.load(load_request(name))
        await lifecycle.unload("a")
        assert [model.id for model in lifecycle.models()] == ["b"]
        house.now += 601
        assert lifecycle.models() == ()


async def test_another_source_under_an_id_in_use_is_a_conflict() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request("a"))
        await lifecycle.load(load_request("a", source="a"))  # what it is by default
        with pytest.raises(Conflict):
            await lifecycle.load(load_request("a", source="other/b"))
        with pytest.raises(Conflict):
            await lifecycle.load(load_request("a", dtype="bfloat16"))


async def test_a_quant_is_the_same_in_any_case_and_another_is_a_conflict() -> None:
    house = House()
    async with house.open() as lifecycle:
        assert (await lifecycle.load(load_request("a", quant="Q4_K_M"))).quant == "Q4_K_M"
        await lifecycle.load(load_request("a", quant="q4_k_m"))
        await lifecycle.load(load_request("a"))
        with pytest.raises(Conflict) as caught:
            await lifecycle.load(load_request("a", quant="q8_0"))
        assert caught.value.param == "quant"
        assert house.sources.quants == ["Q4_K_M"]
        assert house.checkpoints.wishes[0].quant == "Q4_K_M"  # a directory's: quantised at load


# Unloading


async def test_unloading_frees_everything() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        await lifecycle.unload("org/a")
        assert lifecycle.models() == ()
        assert house.used() == 0
        assert house.checkpoints.engines["org--a"][0].closed
        with pytest.raises(ModelNotFound), lifecycle.lease("org/a"):
            pytest.fail("leased")
        with pytest.raises(ModelNotFound):
            await lifecycle.unload("org/a")


async def test_an_unload_waits_for_leases_and_admits_no_new_one() -> None:
    house = House()
    async with house.open() as lifecycle, trio.open_nursery() as nursery:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r", max_tokens=300)) as stream:
                for _ in range(2):
                    nursery.start_soon(lifecycle.unload, "org/a")
                await trio.testing.wait_all_tasks_blocked()
                assert house.status("org/a") == wire.UNLOADING
                with pytest.raises(Unavailable), lifecycle.lease("org/a"):
                    pytest.fail("leased while unloading")
                assert sum([len(events) async for events in stream]) == 300
        await until(lambda: house.status("org/a") is None)
        assert house.checkpoints.engines["org--a"][0].history.count("close") == 1


async def test_a_pause_wants_an_idle_neuron_and_begins_nothing_after_it() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a"), pytest.raises(Conflict, match="in use"):
            lifecycle.pause()
        assert not lifecycle.recovering
        lifecycle.pause()
        assert lifecycle.recovering
        with pytest.raises(Unavailable, match="restarting"), lifecycle.lease("org/a"):
            pytest.fail("leased")
        with pytest.raises(Unavailable, match="restarting"):
            await lifecycle.load(load_request("org/b"))
        assert [request.model_id for request in lifecycle.requests()] == ["org/a"]


async def test_a_pause_waits_for_no_load() -> None:
    house = House()
    async with house.open() as lifecycle:
        lifecycle.start_load(load_request())
        with pytest.raises(Conflict, match="loading"):
            lifecycle.pause()


async def test_after_the_drain_bound_an_unload_ends_what_still_runs() -> None:
    house = House(drain_seconds=0.05)
    async with house.open() as lifecycle, trio.open_nursery() as nursery:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a") as loaded:
            house.checkpoints.engines["org--a"][0].gate = gate = threading.Event()
            async with loaded.engine.stream(request("r", max_tokens=900)) as stream:
                nursery.start_soon(lifecycle.unload, "org/a")
                with pytest.raises(Unavailable):
                    await stream.receive()
                gate.set()
        await until(lambda: house.status("org/a") is None)
        assert house.used() == 0


async def test_unloading_what_is_loading_cancels_the_load() -> None:
    house = gated()
    async with house.open() as lifecycle, trio.open_nursery() as nursery:

        async def join() -> None:
            with pytest.raises(Conflict):
                await lifecycle.load(load_request())

        nursery.start_soon(join)
        await until(house.checkpoints.loading.is_set)
        await lifecycle.unload("org/a")
        assert lifecycle.models() == ()
        assert house.used() == 0
        await until(lambda: house.checkpoints.cancellations == ["org--a"])


async def test_a_load_asked_for_during_an_unload_comes_after_it() -> None:
    house = House()
    async with house.open() as lifecycle, trio.open_nursery() as nursery:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a"):
            nursery.start_soon(lifecycle.unload, "org/a")
            await trio.testing.wait_all_tasks_blocked()
            assert lifecycle.start_load(load_request()).status == wire.LOADING
        model = await lifecycle.load(load_request())
        assert model.status == wire.LOADED
        first, second = house.checkpoints.engines["org--a"]
        assert (first.closed, second.closed) == (True, False)
        assert house.used() == 13 * MIB


async def test_an_unload_goes_on_when_its_caller_leaves() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a"):
            with trio.move_on_after(0.01) as scope:
                await lifecycle.unload("org/a")
            assert scope.cancelled_caught
        await until(lambda: house.status("org/a") is None)
        assert house.used() == 0


# Cancellation at every point where a load waits

WAITS = ["source", "text", "plan", "device", "shard"]


def standing_still(where: str) -> tuple[House, Callable[[], None], Callable[[], bool]]:
    """A house whose load stops at *where*; how to let it go on, and whether it is there."""
    if where == "source":
        house = House(sources=FakeSources(gate=trio.Event()))
        assert house.sources.gate is not None
        return house, house.sources.gate.set, lambda: bool(house.sources.calls)
    gate = threading.Event()
    if where == "text":
        house = House(read_text=TextReader(gate=gate))
        return house, gate.set, house.read_text.reading.is_set
    if where == "plan":
        checkpoints = _SlowPlan(gate_plan=gate)
        return House(checkpoints=checkpoints), gate.set, checkpoints.planning.is_set
    house = House(checkpoints=FakeCheckpoints(gate=gate))
    return house, gate.set, house.checkpoints.loading.is_set


@attrs.define(eq=False)
class _SlowPlan(FakeCheckpoints):
    gate_plan: threading.Event = attrs.field(factory=threading.Event)
    planning: threading.Event = attrs.field(factory=threading.Event)

    def plan(self, *arguments: object) -> object:  # type: ignore[override]
        self.planning.set()
        assert self.gate_plan.wait(10)
        return super().plan(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", WAITS)
async def test_an_unload_at_any_point_of_a_load_leaves_nothing_behind(where: str) -> None:
    house, go_on, is_there = standing_still(where)
    async with house.open() as lifecycle:
        if where == "device":  # the load waits in line behind another's
            lifecycle.start_load(load_request("first"))
            await until(is_there)
        lifecycle.start_load(load_request())
        await until(is_there)
        await trio.testing.wait_all_tasks_blocked()
        await lifecycle.unload("org/a")
        assert house.status("org/a") is None
        go_on()
        model = await lifecycle.load(load_request())
        assert model.status == wire.LOADED
        await lifecycle.unload("org/a")
        if where == "device":
            await lifecycle.load(load_request("first"))
            await lifecycle.unload("first")
        assert house.used() == 0
        assert all(e.closed for engines in house.checkpoints.engines.values() for e in engines)


@pytest.mark.parametrize("where", WAITS)
async def test_a_caller_that_leaves_at_any_point_changes_nothing(where: str) -> None:
    house, go_on, is_there = standing_still(where)
    async with house.open() as lifecycle, trio.open_nursery() as nursery:
        if where == "device":
            lifecycle.start_load(load_request("first"))
            await until(is_there)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when, is_there, scope)
            await lifecycle.load(load_request())
        assert scope.cancelled_caught
        assert house.status("org/a") == wire.LOADING
        go_on()
        assert (await lifecycle.load(load_request())).status == wire.LOADED
        assert house.checkpoints.opens.count("org--a") == 1


async def _cancel_when(condition: Callable[[], bool], scope: trio.CancelScope) -> None:
    await until(condition)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("where", WAITS)
async def test_the_end_of_the_neuron_at_any_point_of_a_load_answers_its_waiters(where: str) -> None:
    house, go_on, is_there = standing_still(where)
    outcomes: list[CortexError] = []

    async def join() -> None:
        try:
            with trio.CancelScope(shield=True):
                await house.lifecycle.load(load_request())
        except CortexError as exc:
            outcomes.append(exc)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with house.open() as lifecycle:
                if where == "device":
                    lifecycle.start_load(load_request("first"))
                    await until(is_there)
                nursery.start_soon(join)
                await until(is_there)
                await trio.testing.wait_all_tasks_blocked()
            go_on()
    assert len(outcomes) == 1
    assert isinstance(outcomes[0], Unavailable)
    assert house.used() == 0
    assert all(e.closed for engines in house.checkpoints.engines.values() for e in engines)


async def test_a_draining_neuron_begins_nothing_but_ends_what_runs() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r", max_tokens=50)) as stream:
                lifecycle.drain()
                with pytest.raises(Draining):
                    await lifecycle.load(load_request("b"))
                with pytest.raises(Draining), lifecycle.lease("org/a"):
                    pytest.fail("leased")
                assert sum([len(events) async for events in stream]) == 50


# Faults


async def test_a_device_fault_keeps_its_models_visible_as_recovering() -> None:
    house = House(slots=(slot(0), slot(1)))
    async with house.open() as lifecycle:
        await lifecycle.load(load_request("a", devices=(0,)))
        await lifecycle.load(load_request("b", devices=(1,)))
        fault = FakeDeviceFault("illegal address")
        house.checkpoints.engines["a"][0].step_error = fault
        with lifecycle.lease("a") as loaded:
            async with loaded.engine.stream(request("r")) as stream:
                with pytest.raises(DeviceLost):
                    await stream.receive()
        assert house.faults == [(0, fault)]
        assert house.status("a") == wire.RECOVERING
        assert house.status("b") == wire.LOADED
        assert lifecycle.recovering
        with pytest.raises(Unavailable), lifecycle.lease("a"):
            pytest.fail("leased")
        assert {r.model_id for r in lifecycle.requests()} == {"a", "b"}
        with pytest.raises(DeviceLost):
            await lifecycle.load(load_request("c", devices=(0,)))
        with pytest.raises(Unavailable, match="recovering"):
            await lifecycle.load(load_request("a"))


async def test_a_device_that_is_gone_counts_as_faulted_even_when_its_thread_is_stuck() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        engine = house.checkpoints.engines["org--a"][0]
        engine.gate = threading.Event()
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r")) as stream:
                await until(engine.in_step.is_set)
                lifecycle.device_lost(0, "GPU is lost")
                with pytest.raises(DeviceLost):
                    await stream.receive()
        assert [(index, str(error)) for index, error in house.faults] == [(0, "GPU is lost")]
        assert house.status("org/a") == wire.RECOVERING
        engine.gate.set()


async def test_a_load_that_a_device_fault_ends_is_in_the_resident_set() -> None:
    house = House()
    house.checkpoints.open_errors["a"] = FakeDeviceFault("gone")
    async with house.open() as lifecycle:
        with pytest.raises(DeviceLost):
            await lifecycle.load(load_request("a"))
        assert house.status("a") == wire.RECOVERING
        assert [r.model_id for r in lifecycle.requests()] == ["a"]


async def test_an_engine_that_fails_by_itself_is_loaded_again() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        house.checkpoints.engines["org--a"][0].step_error = ValueError("a bug")
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r")) as stream:
                with pytest.raises(InternalError):
                    await stream.receive()
        assert house.status("org/a") == wire.RECOVERING
        await until(lambda: house.status("org/a") == wire.LOADED)
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r")) as stream:
                assert sum([len(events) async for events in stream]) == 3
        assert house.used() == 13 * MIB
        assert house.faults == []


async def test_an_engine_that_fails_again_and_again_is_given_up() -> None:
    house = House()
    house.checkpoints.make = lambda _: FakeEngine(step_error=ValueError("a bug"))
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        while house.status("org/a") != wire.FAILED:
            await until(lambda: house.status("org/a") in (wire.LOADED, wire.FAILED))
            try:
                with lifecycle.lease("org/a") as loaded:
                    async with loaded.engine.stream(request("r")) as stream:
                        await stream.receive()
            except InternalError:
                pass
        assert len(house.checkpoints.opens) == 5  # the first load, and four more
        (model,) = lifecycle.models()
        assert model.error == "the engine of org/a failed"
        assert house.used() == 0


async def test_expected_models_show_until_they_are_back() -> None:
    house = gated()
    async with house.open() as lifecycle:
        lifecycle.expect([load_request("a"), load_request("b")])
        assert {house.status("a"), house.status("b")} == {wire.RECOVERING}
        with pytest.raises(Unavailable), lifecycle.lease("a"):
            pytest.fail("leased")
        lifecycle.start_load(load_request("a"))
        assert house.status("a") == wire.RECOVERING  # on its way, and how far
        await until(house.checkpoints.loading.is_set)
        progress = next(model.progress for model in lifecycle.models() if model.id == "a")
        assert progress is not None
        release(house)
        assert (await lifecycle.load(load_request("a"))).status == wire.LOADED
        await lifecycle.unload("b")
        assert house.status("b") is None
        assert not lifecycle.recovering


# Estimates and texts


async def test_an_estimate_reads_no_weights_and_takes_no_memory() -> None:
    house = House()
    async with house.open() as lifecycle:
        estimate = await lifecycle.estimate(load_request())
        assert estimate.total_bytes == 13 * MIB
        assert estimate.rows == {"weights": 4 * MIB, "kv": 8 * MIB, "workspace": MIB}
        assert (estimate.context, estimate.trained_context) == (1000, 4096)
        assert house.sources.calls == [("org/a", "metadata")]
        assert house.checkpoints.opens == []
        assert lifecycle.models() == ()
        assert house.used() == 0


async def test_a_text_is_read_once_and_needs_no_load() -> None:
    house = House()
    async with house.open() as lifecycle:
        text = await lifecycle.text_of(load_request())
        assert await lifecycle.text_of(load_request()) is text
        assert house.checkpoints.opens == []
        await lifecycle.load(load_request())
        assert await lifecycle.text_of("org/a") is text
        assert len(house.read_text.reads) == 1
        with pytest.raises(ModelNotFound):
            await lifecycle.text_of("unknown")


async def test_reads_never_wait_for_a_busy_device() -> None:
    house = House()
    async with house.open() as lifecycle:
        await lifecycle.load(load_request())
        engine = house.checkpoints.engines["org--a"][0]
        engine.gate = threading.Event()
        with lifecycle.lease("org/a") as loaded:
            async with loaded.engine.stream(request("r")):
                await until(engine.in_step.is_set)
                assert house.status("org/a") == wire.LOADED
                assert [load.id for load in lifecycle.loads()] == ["org/a"]
                text = partial(lifecycle.text_of, "org/a")
                with trio.fail_after(1):
                    await text()
                engine.gate.set()
