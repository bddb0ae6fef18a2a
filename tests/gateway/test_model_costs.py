from __future__ import annotations

import pytest

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.model_costs import FIRST_BANDWIDTH, STRANGE, UNKNOWN_SECONDS, ModelCosts
from cortex.wire import neuron as wire

MIB = 1 << 20


def estimate(*, kv: int, trained: int, context: int = 100) -> wire.Estimate:
    """900 MiB without its cache, of which a token takes 1 MiB."""
    rows = {"weights": 900 * MIB, "kv": kv * MIB}
    return wire.Estimate("m", rows, (900 + kv) * MIB, context, trained, MIB)


def loaded(mb: int | None = None) -> wire.Model:
    return wire.Model("m", wire.LOADED, vram_used_mb=mb)


def test_what_the_catalogue_states_comes_before_an_estimate():
    costs = ModelCosts()
    assert costs.mb("m", None) is None
    costs.estimated("m", estimate(kv=0, trained=10))
    assert costs.mb("m", CatalogueEntry("m")) == 910
    assert costs.mb("m", CatalogueEntry("m", vram_mb=5)) == 5


def test_of_an_estimates_cache_a_useful_context_counts_whatever_was_free():
    costs = ModelCosts()
    for kv in (1, 50_000):
        costs.estimated("m", estimate(kv=kv, trained=2000))
        assert costs.mb("m", None) == 2900
    costs.estimated("m", estimate(kv=1, trained=1_000_000))
    assert costs.mb("m", None) == 900 + 8192


def test_what_nobody_stated_is_no_more_than_the_largest_device_can_give():
    costs = ModelCosts()
    assert costs.fitting_mb("m", None, 5000) is None
    costs.estimated("m", estimate(kv=0, trained=1_000_000))  # 9092 MiB with a useful context
    assert costs.fitting_mb("m", None, None) == 9092
    assert costs.fitting_mb("m", None, 20_000) == 9092
    assert costs.fitting_mb("m", None, 5000) == 4500  # a shorter context will have to do
    assert costs.fitting_mb("m", None, 800) == 900  # no context would
    assert costs.fitting_mb("m", CatalogueEntry("m", vram_mb=9999), 5000) == 9999


def test_what_a_loaded_model_takes_comes_free_but_is_not_what_it_needs():
    costs = ModelCosts()
    costs.loaded("n", loaded(20_000), None, 10)
    assert costs.mb("m", None) is None
    assert costs.resident_mb(loaded(20_000), CatalogueEntry("m", vram_mb=5)) == 20_000
    assert costs.resident_mb(loaded(), CatalogueEntry("m", vram_mb=5)) == 5


def test_a_refusal_says_that_more_is_needed_until_a_load_succeeds():
    costs = ModelCosts()
    costs.refused("m", 3000)
    costs.refused("m", 1000)
    assert costs.mb("m", None) == 3001
    assert costs.mb("m", CatalogueEntry("m", vram_mb=5)) == 5  # it may have been another's fault
    costs.estimated("m", estimate(kv=0, trained=10))
    assert costs.mb("m", None) == 3001
    costs.loaded("n", loaded(), 910, 1)
    assert costs.mb("m", None) == 910


def test_loading_times_are_measured_on_the_node_or_follow_from_its_bandwidth():
    costs = ModelCosts()
    assert costs.reload_seconds("n", "m", None) == UNKNOWN_SECONDS
    assert costs.reload_seconds("n", "m", 5000) == 5000 / FIRST_BANDWIDTH
    costs.loaded("n", loaded(), 5000, 10.0)  # 500 MiB/s
    assert costs.reload_seconds("n", "m", 5000) == 10
    assert costs.seconds("n", "m", 5000) == 10
    assert costs.reload_seconds("n", "other", 1000) == pytest.approx(2)
    assert costs.reload_seconds("elsewhere", "other", 1000) == pytest.approx(2)  # the fleet's
    assert costs.seconds("n", "other", 1000) == pytest.approx(2 * STRANGE)  # not there before


def test_bandwidth_follows_slowly_and_small_loads_do_not_count():
    costs = ModelCosts()
    costs.loaded("n", loaded(), 1000, 1.0)
    costs.loaded("n", loaded(), 10, 10.0)
    assert costs.reload_seconds("n", "other", 1000) == pytest.approx(1)
    costs.loaded("n", loaded(), 1000, 2.0)  # 500 MiB/s
    assert costs.reload_seconds("n", "other", 850) == pytest.approx(1)
