from __future__ import annotations

import itertools
import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings
from cortex.gateway.eviction import Resident, free_from, hand_over_from
from cortex.gateway.fleet import NodeSnapshot
from cortex.gateway.placement import (
    Demand,
    Hold,
    Placement,
    Reason,
    Refusal,
    Site,
    feasible_on,
)
from cortex.gateway.placement import place as place_demand
from cortex.wire import neuron as wire

NOW = 1000.0
RULES = EvictionSettings(min_residency_seconds=60, max_wait_seconds=30)


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


def place(model, nodes, *, promised_mb=None, exclude=frozenset(), seconds=None):
    """Placement among nodes that hold nothing."""
    sites = [
        Site(
            each,
            promised_mb=dict.fromkeys(range(4), (promised_mb or {}).get(each.name, 0)),
            seconds=(seconds or {}).get(each.name),
        )
        for each in nodes
    ]
    demand = Demand(model, model.vram_mb if model else None, now=NOW, since=NOW)
    return place_demand(demand, sites, RULES, exclude=exclude)


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


# How fast


def test_a_node_that_loads_much_faster_comes_before_a_freer_one():
    nodes = [node("slow", (80, 70)), node("fast", (24, 20))]
    assert place(entry(vram_mb=8), nodes, seconds={"slow": 50, "fast": 10}).node == "fast"
    assert place(entry(vram_mb=8), nodes, seconds={"slow": 15, "fast": 10}).node == "slow"


# At whose expense


def resident(model: str, mb: int | None, device: int = 0, **fields) -> Resident:
    """A model that was last used 500 s ago, unless said otherwise."""
    given = {"last_used": NOW - 500, "reload_seconds": 5.0, **fields}
    return Resident(model, frozenset({device}), mb, **given)


def contest(*sites: Site, waited: float = 0, mb: int = 8, rank: int = 100, rules=RULES):
    demand = Demand(entry(vram_mb=mb), mb, now=NOW, since=NOW - waited, rank=rank)
    return place_demand(demand, sites, rules)


def test_an_idle_model_makes_room_only_where_there_is_none():
    full = Site(node("a", (24, 2)), (resident("old", 20),))
    assert contest(full) == Placement("a", (0,), 2, ("old",))
    assert contest(full, Site(node("b", (24, 9)))) == Placement("b", (0,), 9)


def test_over_the_whole_fleet_the_least_missed_leaves():
    sites = [
        Site(node("a", (24, 2)), (resident("recent", 20, last_used=NOW - 100),)),
        Site(node("b", (24, 2)), (resident("old", 20, last_used=NOW - 900),)),
    ]
    assert contest(*sites).victims == ("old",)
    spare = attrs.evolve(sites[0].residents[0], spare=True)  # another node serves it too
    assert contest(attrs.evolve(sites[0], residents=(spare,)), sites[1]).victims == ("recent",)


def test_nobody_leaves_a_device_where_that_would_not_help():
    two = node("a", (24, 2), (24, 2))
    here, there = resident("here", 3), resident("there", 20, device=1)
    assert contest(Site(two, (here, there))) == Placement("a", (1,), 2, ("there",))


def test_busy_and_fresh_models_stay_until_the_bounded_wait_has_passed():
    busy = Site(node("a", (24, 2)), (resident("busy", 20, requests=2, loaded_at=0),))
    assert contest(busy, waited=10) == Hold(NOW + 20, "a: in use: busy")
    assert contest(busy, waited=30) == Placement("a", (0,), 2, ("busy",), hand_over=True)
    fresh = Site(node("a", (24, 2)), (resident("fresh", 20, loaded_at=NOW - 40),))
    assert contest(fresh, waited=0) == Hold(NOW + 20, "a: in use: fresh")
    assert contest(fresh, waited=30).hand_over


def test_a_model_has_some_residency_however_long_others_wait():
    fresh = Site(node("a", (24, 2)), (resident("fresh", 20, loaded_at=NOW - 5),))
    assert contest(fresh, waited=500) == Hold(NOW + 25, "a: in use: fresh")


def test_who_is_back_within_the_time_a_swap_takes_is_not_evicted():
    site = Site(node("a", (24, 2)), (resident("m", 20, last_used=NOW - 4, reload_seconds=5),))
    assert contest(site) == Hold(NOW + 6, "a: in use: m")
    assert contest(attrs.evolve(site, residents=(resident("m", 20, last_used=NOW - 11),)))


def test_held_models_never_leave():
    site = Site(node("a", (24, 2)), (resident("pinned", 20, held=True),))
    decision = contest(site, waited=10_000)
    assert isinstance(decision, Refusal)
    assert decision.reason is Reason.FULL


def test_ranks_count_with_the_strategy_that_says_so():
    high = Site(node("a", (24, 2)), (resident("high", 20, rank=200),))
    assert contest(high).victims == ("high",)
    priority = attrs.evolve(RULES, strategy="priority")
    assert isinstance(contest(high, waited=10_000, rules=priority), Refusal)
    assert contest(high, rank=200, rules=priority).victims == ("high",)  # equals may


def test_a_model_is_not_put_beside_itself_while_it_leaves():
    leaving = Site(node("a", (24, 2), (24, 20)), leaving=True)
    assert isinstance(contest(leaving), Hold)
    assert contest(leaving, Site(node("b", (24, 9)))).node == "b"


def test_nobody_is_evicted_on_a_measurement_that_is_out_of_date():
    full = Site(node("a", (24, 2)), (resident("old", 20),), stale=True)
    assert contest(full) == Hold(math.inf, "a: memory is being measured")
    assert contest(attrs.evolve(full, node=node("a", (24, 9)))).victims == ()


def test_a_device_somebody_is_at_work_on_is_waited_for():
    site = Site(node("a", (24, 20)), taken=frozenset({0}))
    decision = contest(site)
    assert isinstance(decision, Hold)
    assert "another model" in decision.detail


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


# Against every possibility

_there = st.builds(
    Resident,
    model=st.sampled_from(["a", "b", "c", "d"]),
    devices=st.sampled_from([frozenset({0}), frozenset({1})]),
    mb=st.integers(1, 12),
    rank=st.sampled_from([50, 100, 150]),
    requests=st.integers(0, 1),
    loaded_at=st.none() | st.sampled_from([NOW - 200, NOW - 50, NOW - 10]),
    last_used=st.none() | st.sampled_from([NOW - 900, NOW - 100, NOW - 3]),
    held=st.booleans(),
    reload_seconds=st.sampled_from([1.0, 5.0, 20.0]),
)


@st.composite
def _sites(draw) -> list[Site]:
    found = []
    for name in draw(st.sampled_from(["m", "mn"])):
        free = draw(st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=2))
        there = draw(st.lists(_there, max_size=4, unique_by=lambda each: each.model))
        found.append(
            Site(
                node(name, *((24, mb) for mb in free)),
                tuple(each for each in there if max(each.devices) < len(free)),
                taken=draw(st.sets(st.integers(0, 1), max_size=1).map(frozenset)),
                promised_mb={0: draw(st.integers(0, 3))},
                stale=draw(st.booleans()),
            )
        )
    return found


def _possible(demand: Demand, site: Site, rules) -> dict[str, bool]:
    """By how the model can come to be on the site: tried out over each device and each set."""
    ways = {"free": False, "evict": False, "hand over": False}
    for device, health in enumerate(site.node.health.devices):
        if device in site.taken:
            continue
        free = health.vram_free_mb
        if free is None:
            ways["free"] = True
            continue
        free = max(0, free - site.promised_mb.get(device, 0))
        ways["free"] |= free >= demand.mb
        here = [each for each in site.residents if each.devices == {device}]
        for size in range(1, len(here) + 1):
            for leaving in itertools.combinations(here, size):
                if free + sum(each.mb for each in leaving) < demand.mb or site.stale:
                    continue
                if any(each.held for each in leaving):
                    continue
                if rules.strategy == "priority" and any(r.rank > demand.rank for r in leaving):
                    continue
                ready = [free_from(each, rules) <= NOW for each in leaving]
                due = [hand_over_from(each, demand.since, rules) <= NOW for each in leaving]
                ways["evict"] |= all(ready)
                ways["hand over"] |= all(r or d for r, d in zip(ready, due, strict=True))
    return ways


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    _sites(),
    st.integers(1, 20),
    st.sampled_from([0, 20, 40, 400]),
    st.sampled_from(["lru", "priority"]),
)
def test_what_is_possible_is_found_and_nothing_else(sites, mb, waited, strategy):
    rules = attrs.evolve(RULES, strategy=strategy)
    demand = Demand(entry(vram_mb=mb), mb, now=NOW, since=NOW - waited)
    decision = place_demand(demand, sites, rules)
    ways = {site.node.name: _possible(demand, site, rules) for site in sites}

    def anywhere(way: str) -> bool:
        return any(possible[way] for possible in ways.values())

    if not isinstance(decision, Placement):
        assert not any(anywhere(way) for way in ("free", "evict", "hand over"))
        return
    way = "free"
    if decision.victims:
        way = "hand over" if decision.hand_over else "evict"
    assert ways[decision.node][way]
    assert way == next(way for way in ("free", "evict", "hand over") if anywhere(way))
    site = next(site for site in sites if site.node.name == decision.node)
    for model in decision.victims:
        resident = next(each for each in site.residents if each.model == model)
        assert not resident.held
        assert decision.hand_over or free_from(resident, rules) <= NOW
