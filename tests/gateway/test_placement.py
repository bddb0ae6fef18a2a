from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.fleet import NodeSnapshot
from cortex.gateway.placement import Placement, Reason, Refusal, feasible_on, place
from cortex.wire import neuron as wire


def node(name: str, *devices: tuple[int | None, int | None], healthy: bool = True) -> NodeSnapshot:
    """A node whose devices have these (total, free) MiB."""
    return NodeSnapshot(
        name,
        f"http://{name}:1",
        healthy=healthy,
        discovery=wire.Discovery(
            name,
            "linux",
            "6",
            tuple(wire.Device(i, "gpu", vram_total_mb=d[0]) for i, d in enumerate(devices)),
        ),
        health=wire.Health(
            1.0,
            devices=tuple(wire.DeviceHealth(i, vram_free_mb=d[1]) for i, d in enumerate(devices)),
        ),
    )


def entry(**fields) -> CatalogueEntry:
    return CatalogueEntry("m", **fields)


def test_of_nodes_with_room_the_one_with_most_free_memory_is_taken():
    nodes = [node("a", (24, 10)), node("b", (24, 20)), node("c", (80, 15))]
    assert place(entry(vram_mb=8), nodes) == Placement("b", (0,), 20)


def test_equal_nodes_are_told_apart_by_name():
    nodes = [node("b", (24, 20)), node("a", (24, 20))]
    assert place(entry(vram_mb=8), nodes) == Placement("a", (0,), 20)


def test_the_freest_device_is_taken_not_the_first():
    assert place(entry(vram_mb=8), [node("a", (24, 9), (24, 20))]) == Placement("a", (1,), 20)


def test_free_memory_counts_not_the_total():
    nodes = [node("big", (80, 4)), node("small", (24, 20))]
    assert place(entry(vram_mb=8), nodes) == Placement("small", (0,), 20)


def test_devices_below_the_floor_are_passed_over():
    nodes = [node("a", (8, 8), (24, 7))]
    assert place(entry(min_device_vram_mb=16), nodes) == Placement("a", (1,), 7)


def test_a_model_no_device_could_hold_is_feasible_nowhere_with_numbers():
    decision = place(entry(vram_mb=90), [node("a", (24, 24)), node("b", (80, 80))])
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NOWHERE
    assert "90 MiB" in decision.detail
    assert "the largest has 80 MiB" in decision.detail


def test_too_few_devices_are_infeasible():
    decision = place(entry(min_devices=2, tensor_parallel=1), [node("a", (24, 24))])
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NOWHERE
    two = node("b", (24, 24), (24, 20))
    assert place(entry(min_devices=2, tensor_parallel=1), [two]) == Placement("b", (0,), 24)


def test_tensor_parallelism_is_infeasible_until_there_is_any():
    decision = place(entry(tensor_parallel=2), [node("a", (24, 24), (24, 24))])
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NOWHERE
    assert "tensor parallelism" in decision.detail


def test_a_pinned_model_goes_nowhere_else():
    nodes = [node("a", (24, 24)), node("b", (24, 10))]
    assert place(entry(pinned_on=("b",)), nodes) == Placement("b", (0,), 10)
    decision = place(entry(pinned_on=("elsewhere",)), nodes)
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.NOWHERE


def test_a_feasible_node_that_is_away_is_not_now_rather_than_never():
    nodes = [node("a", (24, 24), healthy=False), node("b", (4, 4))]
    decision = place(entry(vram_mb=8), nodes)
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.UNHEALTHY
    assert "a" in decision.detail


def test_a_node_never_seen_may_be_feasible():
    decision = place(entry(vram_mb=8), [NodeSnapshot("a", "http://a:1")])
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.UNHEALTHY


def test_no_room_now_is_told_with_numbers():
    decision = place(entry(vram_mb=8), [node("a", (24, 5))])
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.FULL
    assert decision.detail == "a: 8 MiB needed, 5 MiB free"


def test_unknown_free_memory_is_neither_zero_nor_better_than_known():
    assert place(entry(vram_mb=8), [node("a", (24, None))]) == Placement("a", (0,), None)
    nodes = [node("a", (24, None)), node("b", (24, 9))]
    assert place(entry(vram_mb=8), nodes) == Placement("b", (0,), 9)
    nodes = [node("a", (24, None)), node("b", (24, 7))]
    assert place(entry(vram_mb=8), nodes) == Placement("a", (0,), None)


def test_a_full_device_does_not_hide_an_unmeasured_one():
    assert place(entry(vram_mb=8), [node("a", (24, 5), (24, None))]) == Placement("a", (1,), None)


def test_unknown_size_goes_where_most_is_free_even_if_that_is_little():
    nodes = [node("a", (24, 1)), node("b", (24, 2))]
    assert place(entry(), nodes) == Placement("b", (0,), 2)
    assert place(None, nodes) == Placement("b", (0,), 2)


def test_memory_promised_to_other_loads_is_not_free():
    nodes = [node("a", (24, 20)), node("b", (24, 12))]
    assert place(entry(vram_mb=8), nodes, promised_mb={"a": 10}) == Placement("b", (0,), 12)
    assert isinstance(place(entry(vram_mb=8), nodes[:1], promised_mb={"a": 13}), Refusal)


def test_a_device_out_of_order_is_not_used():
    broken = node("a", (24, 24), (24, 9))
    devices = broken.health.devices
    health = attrs.evolve(broken.health, devices=(attrs.evolve(devices[0], ok=False), devices[1]))
    assert place(entry(vram_mb=8), [attrs.evolve(broken, health=health)]) == Placement("a", (1,), 9)


def test_excluded_and_draining_nodes_are_passed_over():
    nodes = [node("a", (24, 20)), node("b", (24, 12))]
    assert place(entry(), nodes, exclude=frozenset({"a"})) == Placement("b", (0,), 12)
    draining = attrs.evolve(nodes[0], health=attrs.evolve(nodes[0].health, status="draining"))
    assert place(entry(), [draining, nodes[1]]) == Placement("b", (0,), 12)


def test_feasible_on_names_known_nodes_only():
    nodes = [node("a", (24, 0), healthy=False), node("b", (4, 4)), NodeSnapshot("c", "http://c:1")]
    assert feasible_on(entry(vram_mb=8), nodes) == ("a",)


_memory = st.none() | st.integers(0, 40)


@settings(max_examples=200, deadline=None)
@given(
    fleet=st.lists(st.lists(st.tuples(_memory, _memory), max_size=3), max_size=4),
    vram_mb=_memory,
    floor=_memory,
)
def test_a_placement_never_breaks_a_known_bound(fleet, vram_mb, floor):
    nodes = [node(f"n{i}", *devices) for i, devices in enumerate(fleet)]
    decision = place(entry(vram_mb=vram_mb, min_device_vram_mb=floor), nodes)
    if isinstance(decision, Refusal):
        assert decision.detail
        return
    total, free = fleet[int(decision.node[1:])][decision.devices[0]]
    assert total is None or total >= max(vram_mb or 0, floor or 0)
    assert free is None or vram_mb is None or free >= vram_mb
