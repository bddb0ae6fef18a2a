from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from cortex.config.gateway import NeuronNode
from cortex.gateway.fleet import MISSES_ALLOWED, Fleet, Replica
from cortex.gateway.membership import FleetChange
from cortex.wire import neuron as wire

LOADED = wire.Model("m", wire.LOADED)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def fleet() -> Fleet:
    nodes = [NeuronNode("a", "http://a:1"), NeuronNode("b", "http://b:1", token="secret")]
    return Fleet(nodes, clock=Clock())


def health(uptime: float = 1.0, **fields) -> wire.Health:
    return wire.Health(uptime, **fields)


def statuses(fleet: Fleet, model: str = "m") -> dict[str, str]:
    return {replica.node.name: replica.model.status for replica in fleet.replicas(model)}


def test_a_node_is_unhealthy_until_its_first_good_poll(fleet):
    assert not fleet.node("a").healthy
    fleet.polled("a", [], health(), asked_at=1)
    assert fleet.node("a").healthy
    assert not fleet.node("b").healthy


def test_only_several_misses_in_a_row_make_a_node_unhealthy(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    for _ in range(MISSES_ALLOWED - 1):
        fleet.missed("a", "timed out")
    assert fleet.node("a").healthy
    fleet.polled("a", [LOADED], health(2), asked_at=2)
    for _ in range(MISSES_ALLOWED - 1):
        fleet.missed("a", "timed out")
    assert fleet.node("a").healthy
    fleet.missed("a", "timed out")
    assert not fleet.node("a").healthy
    assert fleet.node("a").error == "timed out"


def test_a_failed_first_contact_does_not_make_a_node_healthy(fleet):
    fleet.missed("a", "refused")
    assert not fleet.node("a").healthy


def test_models_of_an_unhealthy_node_stay_known(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    for _ in range(MISSES_ALLOWED):
        fleet.missed("a", "refused")
    assert statuses(fleet) == {"a": "loaded"}
    assert not fleet.replicas("m")[0].node.serving


def test_a_model_missing_from_a_good_poll_is_gone(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    fleet.polled("a", [], health(2), asked_at=2)
    assert fleet.replicas("m") == ()


def test_models_stay_listed_while_their_node_recovers(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    fleet.polled("a", [], health(2, status="recovering"), asked_at=2)
    fleet.polled("a", [], health(0.1, status="recovering"), asked_at=3)  # it replaced itself
    assert statuses(fleet) == {"a": "recovering"}
    assert not fleet.replicas("m")[0].servable
    fleet.polled("a", [], health(1), asked_at=4)
    assert fleet.replicas("m") == ()


def test_what_activation_is_to_load_is_known_before_it_is_listed(fleet):
    failed = wire.FailedModel("broken", "no such file")
    activation = wire.Activation("pre_warming", ("later",), "now", ("m",), (failed,))
    fleet.polled("a", [LOADED], health(activation=activation), asked_at=1)
    assert statuses(fleet, "now") == {"a": "loading"}
    assert statuses(fleet, "later") == {"a": "loading"}
    assert statuses(fleet, "m") == {"a": "loaded"}
    assert fleet.replicas("broken")[0].model.error == "no such file"


@pytest.mark.parametrize(
    ("status", "servable", "expected"),
    [
        ("loaded", None, True),
        ("loaded", wire.Servable(True), True),
        ("loaded", wire.Servable(False, "poisoned"), False),
        ("recovering", None, False),
        ("loading", None, False),
        ("poisoned", None, False),
    ],
)
def test_resident_is_not_servable_and_silence_about_it_is(fleet, status, servable, expected):
    fleet.polled("a", [wire.Model("m", status, servable=servable)], health(), asked_at=1)
    assert fleet.replicas("m")[0].servable is expected


def test_a_full_queue_does_not_make_a_replica_unservable(fleet):
    load = wire.ModelLoad("m", in_flight=8, queue_depth=64, max_in_flight=8, max_queue_depth=64)
    fleet.polled("a", [LOADED], health(models=(load,)), asked_at=1)
    assert fleet.replicas("m")[0].servable
    assert fleet.load_of("a", "m") == 72


def test_what_the_gateway_did_outranks_a_poll_asked_before(fleet):
    fleet.polled("a", [], health(), asked_at=1)
    fleet.loaded("a", LOADED)  # the clock is past 100 here
    fleet.polled("a", [], health(2), asked_at=50)
    assert statuses(fleet) == {"a": "loaded"}
    fleet.polled("a", [], health(3), asked_at=500)
    assert statuses(fleet) == {}
    fleet.gone("a", "m")
    fleet.polled("a", [LOADED], health(4), asked_at=60)
    assert statuses(fleet) == {}
    fleet.polled("a", [LOADED], health(5), asked_at=600)
    assert statuses(fleet) == {"a": "loaded"}


def test_what_the_gateway_did_is_settled_by_a_poll_asked_since(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    assert fleet.settled("a", "m")
    fleet.gone("a", "m")
    assert not fleet.settled("a", "m")
    fleet.polled("a", [LOADED], health(2), asked_at=60)
    assert not fleet.settled("a", "m")
    fleet.polled("a", [LOADED], health(3), asked_at=600)
    assert fleet.settled("a", "m")


def test_a_restart_begins_a_new_spell_and_forgets_endpoints(fleet):
    fleet.polled("a", [LOADED], health(10), asked_at=1)
    fleet.remember_endpoint("a", "m", "http://a:9")
    spell = fleet.node("a").spell
    fleet.polled("a", [LOADED], health(12), asked_at=2)
    assert fleet.endpoint("a", "m") == "http://a:9"
    assert fleet.node("a").spell == spell
    fleet.polled("a", [LOADED], health(1), asked_at=3)
    assert fleet.endpoint("a", "m") is None
    assert fleet.node("a").spell == spell + 1


def test_an_endpoint_is_forgotten_with_its_model_only(fleet):
    other = wire.Model("other", wire.LOADED)
    fleet.polled("a", [LOADED, other], health(), asked_at=1)
    fleet.remember_endpoint("a", "m", "http://a:9")
    fleet.remember_endpoint("a", "other", "http://a:8")
    fleet.polled("a", [wire.Model("m", wire.UNLOADING), other], health(2), asked_at=2)
    assert fleet.endpoint("a", "m") is None
    assert fleet.endpoint("a", "other") == "http://a:8"


def test_own_requests_are_counted_as_of_now_and_others_as_polled(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    with fleet.hold("a", "m"), fleet.hold("a", "m"):
        assert fleet.load_of("a", "m") == 2
        seen = wire.ModelLoad("m", in_flight=3, queue_depth=2)  # two of these are ours
        fleet.polled("a", [LOADED], health(2, models=(seen,)), asked_at=2)
        assert fleet.load_of("a", "m") == 5
    assert fleet.in_flight("a", "m") == 0
    assert fleet.load_of("a", "m") == 3
    fleet.polled("a", [LOADED], health(3), asked_at=3)
    assert fleet.load_of("a", "m") == 0


def test_how_many_requests_a_replica_takes_is_known_as_long_as_it_is_told(fleet):
    load = wire.ModelLoad("m", max_in_flight=8)
    fleet.polled("a", [LOADED], health(models=(load,)), asked_at=1)
    assert fleet.capacity_of("a", "m") == 8
    assert fleet.capacity_of("b", "m") is None
    fleet.polled("a", [LOADED], health(2), asked_at=2)
    assert fleet.capacity_of("a", "m") is None


def test_a_hold_is_released_whatever_ends_it(fleet):
    with pytest.raises(RuntimeError), fleet.hold("a", "m"):
        raise RuntimeError
    assert fleet.in_flight("a", "m") == 0
    assert fleet.last_used("a", "m") is not None


def test_a_suspect_is_cleared_by_a_good_poll(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    fleet.suspect("a", "reset")
    assert fleet.node("a").suspect
    assert fleet.node("a").healthy
    fleet.polled("a", [LOADED], health(2), asked_at=2)
    assert not fleet.node("a").suspect


def test_tokens_are_kept_out_of_snapshots(fleet):
    fleet.polled("b", [], health(), asked_at=1)
    assert fleet.token("b") == "secret"
    assert "secret" not in repr(fleet.nodes())


async def test_every_change_wakes_who_waits(fleet, autojump_clock):
    async def change() -> None:
        await trio.sleep(5)
        fleet.missed("a", "refused")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await wait_all_tasks_blocked()
        await fleet.wait_changed()
    assert trio.current_time() >= 5
    assert fleet.node("a").misses == 1


# Nodes that come and go


def neurons(**endpoints: str) -> list[NeuronNode]:
    return [NeuronNode(name, endpoint) for name, endpoint in endpoints.items()]


def test_a_new_configuration_says_what_it_changed(fleet):
    change = fleet.configure(
        [
            NeuronNode("c", "http://c:1"),
            NeuronNode("b", "http://b:1", token="other"),
            NeuronNode("a", "http://a:1/"),
        ]
    )
    assert change == FleetChange(added=("c",), changed=("b", "a"))
    assert [node.name for node in fleet.nodes()] == ["c", "b", "a"]
    assert fleet.token("b") == "other"
    assert fleet.configure(neurons(c="http://c:1")) == FleetChange(removed=("b", "a"), kept=("c",))


def test_what_is_known_of_a_node_outlives_a_change_of_its_token_only(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    fleet.polled("b", [LOADED], health(), asked_at=1)
    fleet.remember_endpoint("a", "m", "http://a:9")
    fleet.remember_endpoint("b", "m", "http://b:9")
    fleet.configure([NeuronNode("a", "http://a:1", token="new"), NeuronNode("b", "http://moved:1")])
    assert fleet.node("a").healthy
    assert fleet.endpoint("a", "m") == "http://a:9"
    assert not fleet.node("b").healthy
    assert fleet.node("b").endpoint == "http://moved:1"
    assert fleet.endpoint("b", "m") is None
    assert statuses(fleet) == {"a": "loaded"}


def test_a_node_that_moved_is_in_another_spell_and_deaf_to_its_old_place(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    spell = fleet.node("a").spell
    fleet.configure(neurons(a="http://elsewhere:1"))
    assert fleet.node("a").spell != spell
    fleet.polled("a", [LOADED], health(), asked_at=2)  # asked where it was
    assert not fleet.node("a").healthy
    fleet.polled("a", [LOADED], health(), asked_at=1000)
    assert fleet.node("a").healthy


def test_what_is_told_of_a_removed_node_is_ignored(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    with fleet.hold("a", "m"):
        fleet.configure(neurons(b="http://b:1"))
        assert fleet.replicas("m") == ()
        assert fleet.in_flight("a", "m") == 1  # it goes on
        fleet.polled("a", [LOADED], health(2), asked_at=1000)
        fleet.missed("a", "refused")
        fleet.suspect("a", "reset")
        fleet.described("a", wire.Discovery("a", "linux", "6"), None)
        fleet.loaded("a", LOADED)
        fleet.unloading("a", "m")
        fleet.gone("a", "m")
        fleet.remember_endpoint("a", "m", "http://a:9")
    assert fleet.in_flight("a", "m") == 0
    assert [node.name for node in fleet.nodes()] == ["b"]
    assert not fleet.node("a").healthy
    assert "not configured" in fleet.node("a").error
    assert fleet.last_used("a", "m") is None
    assert fleet.endpoint("a", "m") is None


def test_a_node_that_comes_back_is_known_anew(fleet):
    fleet.polled("a", [LOADED], health(), asked_at=1)
    spell = fleet.node("a").spell
    fleet.configure(neurons(b="http://b:1"))
    fleet.configure(neurons(b="http://b:1", a="http://a:1"))
    assert fleet.node("a").spell > spell
    assert not fleet.node("a").healthy
    assert fleet.node("a").error is None
    assert fleet.replicas("m") == ()


async def test_a_new_configuration_wakes_who_waits_for_it(fleet, autojump_clock):
    async def change() -> None:
        await trio.sleep(5)
        fleet.missed("a", "refused")  # not this
        await trio.sleep(5)
        fleet.configure([])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await wait_all_tasks_blocked()
        await fleet.wait_configured()
    assert trio.current_time() >= 10


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.lists(st.sampled_from(["x", "y", "z"]), max_size=3, unique=True),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_replicas_are_those_of_the_snapshots_whatever_came_before(polls):
    fleet = Fleet([NeuronNode(name, f"http://{name}:1") for name in "abc"], clock=lambda: 0.0)
    for at, (name, models, good) in enumerate(polls):
        if good:
            listed = [wire.Model(model, wire.LOADED) for model in models]
            fleet.polled(name, listed, wire.Health(float(at)), asked_at=float(at))
        else:
            fleet.missed(name, "no answer")
    for model in "xyz":
        assert fleet.replicas(model) == tuple(
            Replica(node, known)
            for node in fleet.nodes()
            for known in node.models
            if known.id == model
        )
    assert set(fleet.model_ids()) == {m.id for node in fleet.nodes() for m in node.models}
