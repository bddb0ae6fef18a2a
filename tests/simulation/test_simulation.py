"""Whole fleets, small enough for every run of the tests; `python -m simulation` has larger ones.

Each simulation checks at every load and unload that nothing is doubled, evicted while busy or
pinned, or over a device's memory, and at every request that it was answered or refused in time.
"""

from __future__ import annotations

import attrs
import pytest

from cortex.config.gateway import EvictionSettings, GatewaySettings
from simulation.baseline import FirstComeFirstServed
from simulation.clock import simulate
from simulation.gateway import SimulatedGateway
from simulation.neurons import Broken
from simulation.scenario import Arrival, Mishaps, ModelSpec, NodeSpec, Scenario, make

pytestmark = pytest.mark.slow

PATIENCE = GatewaySettings()
RULES = EvictionSettings()
AT_ONCE = attrs.evolve(RULES, min_residency_seconds=0, max_wait_seconds=0)
ROUGH = Mishaps(lost_poll=0.05, failed_load=0.05, slow_load=0.1)


def cortex(scenario: Scenario, rules: EvictionSettings = RULES) -> SimulatedGateway:
    return SimulatedGateway(scenario, rules, PATIENCE, "cortex")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", ["lru", "priority", "at once"])
def test_a_fleet_with_mishaps_keeps_its_invariants_and_answers_everybody(seed, strategy):
    scenario = make(
        seed,
        nodes=5,
        models=20,
        seconds=400,
        rate=0.8,
        outages=5,
        pinned=3,
        mishaps=ROUGH,
    )
    rules = AT_ONCE if strategy == "at once" else attrs.evolve(RULES, strategy=strategy)
    outcome, _ = simulate(cortex(scenario, rules))
    assert len(outcome.fates) == len(scenario.arrivals)
    assert outcome.unloads > 0
    assert outcome.served > 0.7 * len(outcome.fates)
    assert outcome.out_of_memory == 0


def test_neurons_are_restarted_between_the_requests_only():
    scenario = make(3, nodes=4, models=16, seconds=900, rate=0.15, agents=0.3, mishaps=ROUGH)
    rules = attrs.evolve(RULES, defrag_after_cycles=2)
    outcome, _ = simulate(cortex(scenario, rules))
    assert outcome.restarts > 0
    assert outcome.out_of_memory == 0


def test_a_simulation_is_its_seeds():
    scenario = make(7, nodes=3, models=12, seconds=300, rate=0.6, mishaps=ROUGH)
    one, other = simulate(cortex(scenario))[0], simulate(cortex(scenario))[0]
    assert (one.fates, one.loads) == (other.fates, other.loads)


def test_about_half_the_swaps_of_first_come_first_served_and_no_longer_waits():
    swaps, waits = [0, 0], [0.0, 0.0]
    for seed in (1, 2):
        scenario = make(seed, nodes=3, models=12, seconds=1200, rate=0.6, agents=0.8, skew=0.7)
        plain, _ = simulate(FirstComeFirstServed(scenario, PATIENCE.load_wait_seconds))
        ours, _ = simulate(cortex(scenario))
        for i, outcome in enumerate((plain, ours)):
            swaps[i] += outcome.loads
            waits[i] += outcome.wait(0.99)
        assert ours.refused <= plain.refused
    assert swaps[1] <= 0.6 * swaps[0]
    assert waits[1] <= waits[0]


def test_models_that_take_turns_do_not_swap_for_each_request():
    node = NodeSpec("n", (10_000,), 1000.0)
    models = tuple(ModelSpec(name, 8_000) for name in "abc")
    arrivals = tuple(Arrival(i * 2.0, name, 2.0) for i, name in enumerate("abaacabc" * 10))
    scenario = Scenario(1, (node,), models, arrivals)
    plain, _ = simulate(FirstComeFirstServed(scenario, PATIENCE.load_wait_seconds))
    ours, _ = simulate(cortex(scenario))
    assert ours.refused == 0
    assert plain.loads > 40
    assert ours.loads <= 12
    assert ours.wait(0.99) < plain.wait(0.99)


def test_the_simulation_itself_notices_what_must_not_happen():
    scenario = make(1, nodes=1, models=1, seconds=10, rate=1.0)
    simulated = cortex(scenario)
    (neuron,) = simulated.neurons.values()
    (model,) = neuron.sizes

    async def twice() -> None:
        await neuron.load(model, 0)
        await neuron.load(model, 0)

    simulated.fleet = None
    simulated.run = twice
    with pytest.raises(Broken, match="which is loaded"):
        simulate(simulated)
