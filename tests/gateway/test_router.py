from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from fakes.control_plane import ControlPlane, control_plane
from fakes.neuron import FakeNeuron, Reply, error_reply
from trio.testing import wait_all_tasks_blocked

from cortex import errors
from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.affinity import SLACK
from cortex.gateway.router import Lease

ENTRY = CatalogueEntry("m", source="org/m", vram_mb=1000)


def holding(name: str, *models: str) -> FakeNeuron:
    neuron = FakeNeuron(name)
    for model in models:
        neuron.hold(model)
    return neuron


async def lease_of(plane: ControlPlane, name: str = "m", **options) -> Lease:
    async with plane.router.route(name, **options) as lease:
        return lease


# Ready replicas


async def test_a_loaded_replica_is_leased_and_counted_while_held(patient_clock):
    neuron = holding("a", "m")
    neuron.token = "s3cret"
    async with control_plane(neuron) as plane:
        async with plane.router.route("m") as lease:
            assert lease == Lease("a", neuron.url, "s3cret", "m", "m", False, 0.0)
            assert plane.fleet.in_flight("a", "m") == 1
        assert plane.fleet.in_flight("a", "m") == 0
        assert "s3cret" not in repr(lease)
        assert neuron.counts["/models/load"] == 0


async def test_an_alias_leads_to_its_model_and_is_remembered(patient_clock):
    async with control_plane(
        holding("a", "m"), models=(ENTRY,), aliases={"claude-sonnet": "m"}
    ) as plane:
        lease = await lease_of(plane, "claude-sonnet")
        assert (lease.model, lease.requested) == ("m", "claude-sonnet")


async def test_a_burst_spreads_over_the_replicas_between_two_polls(patient_clock):
    async with control_plane(holding("b", "m"), holding("a", "m")) as plane:
        async with AsyncExitStack() as stack:
            nodes = [
                (await stack.enter_async_context(plane.router.route("m"))).node for _ in range(6)
            ]
        assert nodes == ["a", "b"] * 3


async def test_a_session_stays_where_it_was_served_when_replicas_come(patient_clock):
    first, second = holding("a", "m"), FakeNeuron("b")
    keys = [f"session {number}" for number in range(16)]
    async with control_plane(first, second) as plane:
        for key in keys:
            assert (await lease_of(plane, affinity=key)).node == "a"
        second.hold("m")
        await plane.seen(lambda fleet: len(fleet.replicas("m")) == 2)
        assert {(await lease_of(plane, affinity=key)).node for key in keys} == {"a"}
        new = {(await lease_of(plane, affinity=f"new {key}")).node for key in keys}
        assert new == {"a", "b"}


async def test_a_session_that_had_to_go_elsewhere_stays_there(patient_clock):
    async with control_plane(holding("a", "m"), holding("b", "m")) as plane:
        home = (await lease_of(plane, affinity="s")).node
        other = (await lease_of(plane, affinity="s", exclude=frozenset({home}))).node
        assert other != home
        assert (await lease_of(plane, affinity="s")).node == other


async def test_a_session_does_not_wait_behind_others(patient_clock):
    async with control_plane(holding("a", "m"), holding("b", "m")) as plane:
        async with AsyncExitStack() as stack:
            nodes = [
                (await stack.enter_async_context(plane.router.route("m", affinity="s"))).node
                for _ in range(40)
            ]
        counts = [nodes.count("a"), nodes.count("b")]
        assert max(counts) - min(counts) <= SLACK + 1


async def test_requests_of_others_count_as_well(patient_clock):
    busy, free = holding("a", "m"), holding("b", "m")
    busy.model_loads = [{"id": "m", "in_flight": 2, "queue_depth": 1}]
    async with control_plane(busy, free) as plane:
        assert (await lease_of(plane)).node == "b"


async def test_where_a_model_is_reached_is_asked_once(patient_clock):
    neuron = holding("a", "m")
    neuron.advertised = "http://127.0.0.1:4242/"
    async with control_plane(neuron) as plane:
        for _ in range(5):
            assert (await lease_of(plane)).endpoint == "http://127.0.0.1:4242"
        await trio.sleep(10)
        await lease_of(plane)
        assert neuron.counts["/models/m/endpoint"] == 1


async def test_an_older_neuron_without_that_route_is_reached_where_it_is_polled(patient_clock):
    neuron = holding("a", "m")
    neuron.scripts["/models/m/endpoint"] = lambda asked: error_reply(404, "not_found")
    async with control_plane(neuron) as plane:
        assert (await lease_of(plane)).endpoint == neuron.url


async def test_a_replica_that_can_serve_nothing_is_passed_over(patient_clock):
    bad = FakeNeuron("a")
    bad.hold("m", servable={"ok": False, "reason": "poisoned"})
    async with control_plane(bad, holding("b", "m")) as plane:
        assert (await lease_of(plane)).node == "b"


async def test_when_every_replica_can_serve_nothing_the_reason_is_told(patient_clock):
    bad = FakeNeuron("a")
    bad.hold("m", servable={"ok": False, "reason": "poisoned", "detail": "device 0 faulted"})
    async with control_plane(bad, models=(ENTRY,)) as plane:
        with pytest.raises(errors.Unavailable, match="device 0 faulted"):
            await lease_of(plane)
        assert bad.counts["/models/load"] == 0


async def test_a_draining_node_gets_no_new_request(patient_clock):
    draining = holding("a", "m")
    draining.health_status = "draining"
    async with control_plane(draining, holding("b", "m")) as plane:
        assert (await lease_of(plane)).node == "b"


async def test_a_replica_on_a_lost_device_is_passed_over_and_one_beside_it_is_not(patient_clock):
    broken = FakeNeuron("a", free_mb={0: 9000, 1: 9000})
    broken.devices.append({**broken.devices[0], "index": 1})
    broken.hold("m")
    broken.hold("beside", devices=[1])
    broken.lost = {0: "fell off the bus"}
    async with control_plane(broken, holding("b", "m", "beside")) as plane:
        for number in range(4):
            assert (await lease_of(plane, affinity=str(number))).node == "b"
        found = {(await lease_of(plane, "beside", affinity=str(n))).node for n in range(16)}
        assert found == {"a", "b"}


async def test_when_the_only_device_is_lost_the_wait_is_bounded_and_the_reason_told(patient_clock):
    broken = holding("a", "m")
    broken.lost = {0: "fell off the bus"}
    async with control_plane(broken, models=(ENTRY,), load_wait_seconds=20) as plane:
        with pytest.raises(errors.Unavailable, match="device 0: fell off the bus") as caught:
            await lease_of(plane)
        assert caught.value.retry_after
        assert broken.counts["/models/load"] == 0
        broken.hold("m", "recovering")  # its process has been replaced
        plane.poller.probe_now("a")
        await plane.seen(lambda fleet: fleet.replicas("m")[0].model.status == "recovering")
        started = trio.current_time()
        with pytest.raises(errors.Unavailable, match="recovering"):
            await lease_of(plane)
        assert trio.current_time() - started <= 21
        broken.lost = {}
        broken.hold("m")
        assert (await lease_of(plane)).node == "a"


async def test_a_node_that_recovers_comes_after_those_that_are_well(patient_clock):
    recovering = holding("a", "m")
    recovering.health_status = "recovering"  # another of its models is not back yet
    well = holding("b", "m")
    async with control_plane(recovering, well) as plane:
        assert {(await lease_of(plane, affinity=str(n))).node for n in range(8)} == {"b"}
        well.kill()
        await plane.seen(lambda fleet: not fleet.node("b").healthy)
        assert (await lease_of(plane)).node == "a"


async def test_a_node_that_is_removed_gets_no_new_lease_and_ends_what_it_has(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons) as plane:
        async with plane.router.route("m") as lease:
            assert lease.node == "a"
            plane.fleet.configure([neurons[1].configured()])
            for _ in range(3):
                assert (await lease_of(plane)).node == "b"
            plane.router.refused(lease)  # and nothing minds
            plane.router.not_loaded(lease)
            assert plane.fleet.in_flight("a", "m") == 1
        assert plane.fleet.in_flight("a", "m") == 0


async def test_a_node_that_is_removed_while_it_is_asked_is_not_leased(patient_clock):
    asked, answer = trio.Event(), trio.Event()
    neurons = holding("a", "m"), holding("b", "m")

    def slow(_):
        asked.set()
        return Reply(frames=(answer, b'{"url": "http://127.0.0.1:9"}'))

    neurons[0].scripts["/models/m/endpoint"] = slow
    async with control_plane(*neurons) as plane, trio.open_nursery() as nursery:

        async def remove() -> None:
            await asked.wait()
            plane.fleet.configure([neurons[1].configured()])
            answer.set()

        nursery.start_soon(remove)
        assert (await lease_of(plane)).node == "b"


async def test_a_node_that_is_removed_while_it_loads_fails_the_load_over(patient_clock):
    slow, other = FakeNeuron("a", load_gate=trio.Event()), FakeNeuron("b", free_mb={0: 5000})
    async with control_plane(slow, other, models=(ENTRY,)) as plane:

        async def remove() -> None:
            await trio.sleep(5)
            plane.fleet.configure([other.configured()])

        plane.nursery.start_soon(remove)
        with trio.fail_after(60):
            assert (await lease_of(plane)).node == "b"


# After failures


async def test_excluded_nodes_are_not_leased_and_nothing_is_loaded_instead(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons, models=(ENTRY,)) as plane:
        assert (await lease_of(plane, exclude=frozenset({"a"}))).node == "b"
        with pytest.raises(errors.UpstreamError):
            await lease_of(plane, exclude=frozenset({"a", "b"}))
        assert neurons[0].counts["/models/load"] == 0


async def test_a_refused_connection_probes_the_node_at_once_and_others_go_first(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons) as plane:
        lease = await lease_of(plane)
        polls = neurons[0].counts["/models"]
        plane.router.refused(lease)
        assert (await lease_of(plane)).node == "b"
        with trio.fail_after(0.5):
            await plane.seen(lambda fleet: not fleet.node("a").suspect)
        assert neurons[0].counts["/models"] == polls + 1
        assert (await lease_of(plane)).node == "a"


async def test_a_404_of_the_neuron_forgets_the_replica_and_looks_again(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons) as plane:
        lease = await lease_of(plane)
        del neurons[0].models["m"]
        polls = neurons[0].counts["/models"]
        plane.router.not_loaded(lease)
        assert (await lease_of(plane)).node == "b"
        await plane.seen(lambda _: neurons[0].counts["/models"] > polls)


async def test_a_model_that_went_unnoticed_is_loaded_again(patient_clock):
    neuron = holding("a", "m")
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        del neuron.models["m"]  # between two polls; where it is reached was never asked
        lease = await lease_of(plane)
        assert lease.cold_start
        assert neuron.counts["/models/load"] == 1


async def test_a_neuron_that_contradicts_itself_is_given_up(patient_clock):
    neuron = holding("a", "m")
    neuron.scripts["/models/m/endpoint"] = lambda asked: error_reply(404, "model_not_found")
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        with pytest.raises(errors.UpstreamError):
            await lease_of(plane)
        assert neuron.counts["/models/load"] <= 2


async def test_a_node_that_dies_is_left_for_one_that_lives(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons) as plane:
        neurons[0].kill()
        assert (await lease_of(plane)).node == "b"  # "a" cannot say where it is reached
        assert plane.fleet.node("a").suspect


# Cold loads


async def test_a_model_nobody_has_is_loaded_as_the_catalogue_says(patient_clock):
    given = {"source": "org/m", "quant": "q4", "context": 4096, "tool_format": "hermes"}
    entry = CatalogueEntry("m", vram_mb=1000, **given)
    small, big = FakeNeuron("a", free_mb={0: 2000}), FakeNeuron("b", free_mb={0: 9000})
    async with control_plane(small, big, models=(entry,)) as plane:
        async with plane.router.route("m") as lease:
            assert (lease.node, lease.cold_start) == ("b", True)
        asked = next(asked for asked in big.requests if asked.path == "/models/load")
        assert asked.json == {"model_id": "m", "devices": [0], **given}
        assert not (await lease_of(plane)).cold_start
        assert plane.sample("cortex_cold_starts_total", model="m", node="b") == 1


async def test_any_number_of_requests_share_one_load(patient_clock):
    neurons = FakeNeuron("a", load_gate=trio.Event()), FakeNeuron("b", load_gate=trio.Event())
    async with control_plane(*neurons, models=(ENTRY,)) as plane:
        leases = []

        async def ask() -> None:
            async with plane.router.route("m") as lease:
                leases.append(lease)
                assert lease.load_seconds >= 5

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.sleep(5)
            neurons[0].load_gate.set()
        assert [lease.node for lease in leases] == ["a"] * 20
        assert neurons[0].counts["/models/load"] + neurons[1].counts["/models/load"] == 1
        assert plane.fleet.in_flight("a", "m") == 0


async def test_a_load_goes_on_when_everybody_has_left(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        with trio.move_on_after(3):
            await lease_of(plane)
        assert plane.router.loading("m")["node"] == "a"
        neuron.load_gate.set()
        await plane.seen(lambda fleet: any(r.servable for r in fleet.replicas("m")))
        assert not (await lease_of(plane)).cold_start
        assert neuron.counts["/models/load"] == 1
        assert plane.router.loading("m") is None


async def test_patience_ends_with_what_is_known_of_the_load(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,), load_wait_seconds=30) as plane:
        started = trio.current_time()

        def progress(asked):
            stage = {"stage": "weights", "bytes_done": 30, "bytes_total": 120, "eta_seconds": 42.0}
            if "m" in neuron.models:
                neuron.models["m"]["progress"] = stage

        neuron.scripts["/models"] = progress
        with pytest.raises(errors.ModelLoading) as caught:
            await lease_of(plane)
        assert trio.current_time() - started == pytest.approx(30, abs=0.5)
        assert caught.value.extras["loading"] == {
            "node": "a",
            "stage": "weights",
            "progress": 0.25,
            "eta": 42.0,
        }
        assert caught.value.retry_after == 42.0
        neuron.load_gate.set()


async def test_a_load_the_neuron_began_by_itself_is_waited_for_not_doubled(patient_clock):
    neuron = FakeNeuron("a")
    neuron.activation = {"state": "pre_warming", "pending": ["m"]}
    async with control_plane(neuron, FakeNeuron("b"), models=(ENTRY,)) as plane:

        async def warm_up() -> None:
            await trio.sleep(10)
            neuron.activation = {}
            neuron.hold("m")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(warm_up)
            lease = await lease_of(plane)
        assert (lease.node, lease.cold_start) == ("a", True)
        assert plane.neurons["b"].counts["/models/load"] == 0


@pytest.mark.parametrize("status", ["recovering", "unloading"])
async def test_a_replica_in_between_is_not_doubled(patient_clock, status):
    neuron = FakeNeuron("a")
    neuron.hold("m", status)
    other = FakeNeuron("b")
    async with control_plane(neuron, other, models=(ENTRY,), load_wait_seconds=20) as plane:
        with pytest.raises(errors.Unavailable, match=status) as caught:
            await lease_of(plane)
        assert caught.value.retry_after
        assert other.counts["/models/load"] == 0
        neuron.hold("m")
        assert (await lease_of(plane)).node == "a"


async def test_a_failed_load_is_told_with_its_cause_and_not_tried_at_once(patient_clock):
    neuron = FakeNeuron("a", load_reply=error_reply(422, "bad_checkpoint", "shard 2 is truncated"))
    async with control_plane(neuron, FakeNeuron("b"), models=(ENTRY,)) as plane:
        for _ in range(3):
            with pytest.raises(errors.LoadFailed, match="shard 2 is truncated") as caught:
                await lease_of(plane)
            assert 0 < caught.value.retry_after <= 5
        assert neuron.counts["/models/load"] == 1
        assert plane.neurons["b"].counts["/models/load"] == 0  # bad files are bad everywhere
        await trio.sleep(6)
        with pytest.raises(errors.LoadFailed) as caught:
            await lease_of(plane)
        assert neuron.counts["/models/load"] == 2
        assert 5 < caught.value.retry_after <= 10  # twice as long
        neuron.load_reply = None
        await trio.sleep(11)
        assert (await lease_of(plane)).node == "a"
        assert plane.sample("cortex_model_load_failures_total", model="m", node="a") == 2


async def test_every_waiter_learns_of_the_failure(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event(), load_reply=error_reply(500, "internal_error"))
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        caught = []

        async def ask() -> None:
            try:
                await lease_of(plane)
            except errors.LoadFailed as exc:
                caught.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.sleep(1)
            neuron.load_gate.set()
        assert len({id(exc) for exc in caught}) == 5
        assert neuron.counts["/models/load"] == 1


async def test_a_node_without_room_is_followed_by_the_next_best(patient_clock):
    full = FakeNeuron("a", load_reply=error_reply(503, "insufficient_memory", "no room"))
    other = FakeNeuron("b", free_mb={0: 10_000})
    async with control_plane(full, other, models=(ENTRY,)) as plane:
        assert (await lease_of(plane)).node == "b"
        assert full.counts["/models/load"] == 1


async def test_a_neuron_that_dies_while_loading_fails_the_load(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,)) as plane:

        async def die() -> None:
            await trio.sleep(4)
            neuron.kill()

        plane.nursery.start_soon(die)
        with trio.fail_after(30), pytest.raises(errors.LoadFailed):
            await lease_of(plane)


async def test_a_neuron_that_falls_silent_while_loading_fails_the_load(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        neuron.scripts["/health"] = lambda asked: error_reply(503, "service_unavailable")
        with trio.fail_after(60), pytest.raises(errors.LoadFailed, match="went away"):
            await lease_of(plane)


async def test_a_neuron_that_restarts_while_loading_fails_the_load(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,)) as plane:

        async def restart() -> None:
            await trio.sleep(10)
            neuron.restarted()  # its old connections hang

        plane.nursery.start_soon(restart)
        with trio.fail_after(30), pytest.raises(errors.LoadFailed, match="went away"):
            await lease_of(plane)


async def test_everybody_who_is_refused_has_an_error_of_his_own(patient_clock):
    huge = CatalogueEntry("huge", vram_mb=90_000)
    caught = []

    async with control_plane(FakeNeuron("a"), models=(huge,)) as plane:

        async def ask() -> None:
            try:
                await lease_of(plane, "huge")
            except errors.NoFeasibleNode as exc:
                caught.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
    assert len({id(exc) for exc in caught}) == 3


async def test_a_model_that_fits_nowhere_is_told_for_good_and_with_numbers(patient_clock):
    huge = CatalogueEntry("huge", vram_mb=90_000)
    async with control_plane(FakeNeuron("a"), models=(huge,)) as plane:
        with pytest.raises(errors.NoFeasibleNode, match="90000 MiB") as caught:
            await lease_of(plane, "huge")
        assert caught.value.retry_after is None
        assert caught.value.should_retry is False


async def test_no_room_now_is_told_with_numbers_and_asks_nobody(patient_clock):
    neuron = FakeNeuron("a", free_mb={0: 10})
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        with pytest.raises(errors.Unavailable, match="1000 MiB needed, 10 MiB free") as caught:
            await lease_of(plane)
        assert type(caught.value) is errors.Unavailable
        assert caught.value.retry_after
        assert neuron.counts["/models/load"] == 0


async def test_a_model_of_unknown_size_is_asked_of_the_neuron_anyway(patient_clock):
    neuron = FakeNeuron("a", free_mb={0: 10})
    async with control_plane(neuron, models=(CatalogueEntry("m"),)) as plane:
        assert (await lease_of(plane)).cold_start


async def test_two_loads_do_not_count_on_the_same_memory(patient_clock):
    gate = trio.Event()
    neuron = FakeNeuron("a", free_mb={0: 1500}, load_gate=gate)
    staying = CatalogueEntry("m", vram_mb=1000, pinned_on=("a",))
    models = (staying, CatalogueEntry("other", vram_mb=1000))
    async with control_plane(neuron, models=models) as plane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease_of, plane, "m")
            await trio.sleep(1)

            async def finish() -> None:
                await trio.sleep(5)
                neuron.free_mb[0] = 500
                gate.set()

            nursery.start_soon(finish)
            with pytest.raises(errors.Unavailable, match="no neuron has room for other"):
                await lease_of(plane, "other")
        assert neuron.counts["/models/load"] == 1


# Not now, or never


async def test_an_unknown_model_is_not_found(patient_clock):
    async with control_plane(holding("a", "m")) as plane:
        with pytest.raises(errors.ModelNotFound):
            await lease_of(plane, "nope")


async def test_a_model_on_a_node_that_is_away_is_not_now_rather_than_never(patient_clock):
    neuron = holding("a", "m")
    async with control_plane(neuron) as plane:
        neuron.kill()
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        with pytest.raises(errors.NoHealthyNode, match="m is on a") as caught:
            await lease_of(plane)
        assert caught.value.retry_after


async def test_a_catalogue_model_whose_nodes_are_away_is_not_now(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        neuron.kill()
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        with pytest.raises(errors.NoHealthyNode):
            await lease_of(plane)


async def test_a_default_model_that_failed_tells_why(patient_clock):
    neuron = FakeNeuron("a")
    neuron.activation = {"failed": [{"model_id": "m", "error": "no such folder"}]}
    async with control_plane(neuron) as plane:
        with pytest.raises(errors.LoadFailed, match="no such folder"):
            await lease_of(plane)


# Leaving


@pytest.mark.parametrize("where", ["endpoint", "load", "own load", "held"])
async def test_a_request_that_leaves_leaves_nothing_behind(patient_clock, where):
    never = trio.Event()
    neuron = FakeNeuron("a")
    if where in ("endpoint", "held"):
        neuron.hold("m")
    if where == "endpoint":
        neuron.scripts["/models/m/endpoint"] = lambda asked: Reply(frames=(never,))
    if where == "load":
        neuron.load_gate = never
    if where == "own load":
        neuron.hold("m", "loading")
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                async with plane.router.route("m"):
                    await trio.sleep_forever()

            for _ in range(3):
                nursery.start_soon(ask)
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            counted = plane.fleet.in_flight("a", "m")
            assert counted == (3 if where in ("endpoint", "held") else 0)
            nursery.cancel_scope.cancel()
        assert plane.fleet.in_flight("a", "m") == 0
        assert plane.fleet.load_of("a", "m") == 0


async def test_a_failure_inside_the_lease_releases_it(patient_clock):
    async with control_plane(holding("a", "m")) as plane:
        with pytest.raises(RuntimeError):
            async with plane.router.route("m"):
                raise RuntimeError
        assert plane.fleet.in_flight("a", "m") == 0


# An operator's orders


async def test_an_operator_may_load_what_no_catalogue_lists_and_where(patient_clock):
    neurons = FakeNeuron("a"), FakeNeuron("b", free_mb={0: 1})
    async with control_plane(*neurons) as plane:
        assert await plane.router.load("org/new") == "a"
        assert await plane.router.load("org/new") == "a"  # is loaded: a success
        assert await plane.router.load("org/new", "b") == "b"
        assert neurons[0].counts["/models/load"] == 1
        assert neurons[1].counts["/models/load"] == 1
        # No request has waited: these are no cold starts.
        assert not plane.sample("cortex_cold_starts_total", model="org/new", node="a")
        with pytest.raises(errors.ModelNotFound):
            await plane.router.load("../../etc/passwd")
        with pytest.raises(errors.NotFound, match="there are: a, b"):
            await plane.router.load("m", "c")


async def test_an_operators_load_ignores_the_back_off_and_is_told_the_truth(patient_clock):
    neuron = FakeNeuron("a", load_reply=error_reply(422, "unsupported_model", "unknown arch"))
    async with control_plane(neuron, models=(ENTRY,)) as plane:
        for _ in range(2):
            with pytest.raises(errors.UnsupportedModel, match="unknown arch"):
                await plane.router.load("m")
        assert neuron.counts["/models/load"] == 2
        neuron.load_reply = None
        assert await plane.router.load("m") == "a"
        assert (await lease_of(plane)).node == "a"


async def test_an_operators_load_is_bounded_and_goes_on(patient_clock):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    async with control_plane(neuron, models=(ENTRY,), load_wait_seconds=10) as plane:
        with pytest.raises(errors.ModelLoading):
            await plane.router.load("m")
        neuron.load_gate.set()
        await plane.seen(lambda fleet: any(r.servable for r in fleet.replicas("m")))


async def test_unload_frees_every_replica_or_the_named_one(patient_clock):
    neurons = holding("a", "m"), holding("b", "m")
    async with control_plane(*neurons, models=(ENTRY,)) as plane:
        assert await plane.router.unload("m", "b") == ("b",)
        assert (await lease_of(plane)).node == "a"
        assert await plane.router.unload("m") == ("a",)
        assert all(not neuron.models for neuron in neurons)
        with pytest.raises(errors.ModelNotFound):
            await plane.router.unload("m")


async def test_no_lease_is_given_on_a_replica_that_is_being_unloaded(patient_clock):

    neuron, draining = holding("a", "m"), trio.Event()

    neuron.scripts["/models/unload"] = lambda asked: Reply(
        frames=(draining, b'{"status": "unloaded"}')
    )
    async with (
        control_plane(neuron, holding("b", "m")) as plane,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(plane.router.unload, "m", "a")
        await wait_all_tasks_blocked(0.05)
        for _ in range(3):
            assert (await lease_of(plane)).node == "b"
        draining.set()
