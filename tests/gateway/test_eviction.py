from __future__ import annotations

import itertools
import math

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import EvictionSettings
from cortex.gateway.eviction import (
    Resident,
    displaceable,
    free_from,
    hand_over_from,
    loss,
    rank_of,
    victims,
    worth,
)

NOW = 1000.0
RULES = EvictionSettings(min_residency_seconds=60, max_wait_seconds=30)
PRIORITY = attrs.evolve(RULES, strategy="priority")


def resident(model: str = "m", mb: int | None = 10, **fields) -> Resident:
    given = {"last_used": NOW - 100, "reload_seconds": 10.0, **fields}
    return Resident(model, frozenset({0}), mb, **given)


def names(chosen: tuple[Resident, ...] | None) -> list[str] | None:
    return None if chosen is None else [each.model for each in chosen]


def test_the_least_recently_used_of_equals_leaves():
    models = [resident("b", last_used=900), resident("a", last_used=950), resident("c")]
    assert names(victims(models, 5, NOW, RULES)) == ["b"]
    assert names(victims(models, 15, NOW, RULES)) == ["b", "c"]


def test_no_more_leave_than_are_needed():
    models = [resident("small", 2, last_used=100), resident("big", 20, last_used=900)]
    assert names(victims(models, 20, NOW, RULES)) == ["big"]
    assert names(victims(models, 21, NOW, RULES)) == ["small", "big"]
    assert victims(models, 23, NOW, RULES) is None


def test_what_loads_quickly_leaves_before_what_takes_long():
    models = [resident("slow", reload_seconds=60), resident("quick", reload_seconds=2)]
    assert names(victims(models, 5, NOW, RULES)) == ["quick"]


def test_an_unknown_size_is_neither_zero_nor_better_than_a_known_one():
    unknown, known = resident("unknown", None, last_used=0), resident("known")
    assert names(victims([unknown, known], 10, NOW, RULES)) == ["known"]
    assert names(victims([unknown, known], 11, NOW, RULES)) == ["unknown"]


def test_ranks_are_the_originals():
    assert rank_of(None) == 100
    assert rank_of(CatalogueEntry("m")) == 100
    assert rank_of(CatalogueEntry("m", pinned_on=("a",))) == 1000
    assert rank_of(CatalogueEntry("m", pinned_on=("a",), residency_priority=5)) == 5


def test_a_higher_rank_stays_longer_only_where_ranks_count():
    low, high = resident("low", rank=1, last_used=999), resident("high", rank=9, last_used=1)
    assert names(victims([low, high], 5, NOW, PRIORITY)) == ["low"]
    assert names(victims([low, high], 5, NOW, RULES)) == ["high"]
    assert displaceable(high, 1, RULES)
    assert not displaceable(high, 1, PRIORITY)
    assert displaceable(high, 9, PRIORITY)
    assert not displaceable(attrs.evolve(low, held=True), 1000, RULES)


def test_a_model_may_go_when_idle_long_enough_and_resident_long_enough():
    assert free_from(resident(requests=1), RULES) == math.inf
    assert free_from(resident(last_used=None, loaded_at=None), RULES) == -math.inf
    assert free_from(resident(last_used=500, loaded_at=490), RULES) == 550
    assert free_from(resident(last_used=600, loaded_at=490), RULES) == 620  # 10 s to load again
    assert free_from(resident(last_used=600, reload_seconds=900), RULES) == 630


def test_a_hand_over_waits_for_its_bound_and_for_a_part_of_the_residency():
    assert hand_over_from(resident(loaded_at=None), 900, RULES) == 930
    assert hand_over_from(resident(loaded_at=0), 900, RULES) == 930
    assert hand_over_from(resident(loaded_at=920), 900, RULES) == 950
    at_once = attrs.evolve(RULES, min_residency_seconds=0, max_wait_seconds=0)
    assert hand_over_from(resident(loaded_at=920), 900, at_once) == 921  # who waited gets in


def test_what_others_serve_too_is_missed_less():
    assert loss(resident(spare=True), NOW) < loss(resident(), NOW)
    assert loss(resident(last_used=None), NOW) == 0


_residents = st.lists(
    st.builds(
        Resident,
        model=st.text("abcdefgh", min_size=1, max_size=4),
        devices=st.just(frozenset({0})),
        mb=st.integers(0, 20),
        rank=st.integers(0, 3),
        requests=st.integers(0, 1),
        last_used=st.none() | st.floats(0, NOW),
        reload_seconds=st.floats(0, 100),
        spare=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda each: each.model,
)


@settings(max_examples=300, deadline=None)
@given(_residents, st.integers(1, 60), st.sampled_from([RULES, PRIORITY]))
def test_the_choice_is_enough_spares_whom_it_can_and_takes_nobody_dear_in_vain(
    residents, shortage, rules
):
    chosen = victims(residents, shortage, NOW, rules)
    enough = [
        subset
        for size in range(len(residents) + 1)
        for subset in itertools.combinations(residents, size)
        if sum(each.mb for each in subset) >= shortage
    ]
    if chosen is None:
        assert not enough
        return
    freed = sum(each.mb for each in chosen)
    assert freed >= shortage
    assert all(freed - each.mb < shortage for each in chosen)  # nobody could be spared

    def dearest(subset):
        return max((*worth(each, NOW, rules), each.model) for each in subset)

    assert dearest(chosen) == min(dearest(subset) for subset in enough)
