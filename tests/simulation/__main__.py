"""Simulates fleets under several policies: `PYTHONPATH=.:tests python -m simulation`.

Each row is one policy over the same requests, nodes and mishaps. Waits are from a request's arrival
to its seat on a neuron, in seconds of virtual time.
"""

from __future__ import annotations

import argparse
import logging

import attrs

from cortex.config.gateway import EvictionSettings, GatewaySettings
from simulation.baseline import FirstComeFirstServed
from simulation.clock import simulate
from simulation.gateway import SimulatedGateway
from simulation.outcome import Outcome
from simulation.scenario import Mishaps, Scenario, make

PATIENCE = GatewaySettings()
# Models leave for others only, since the baseline unloads none because it is idle.
CORTEX = EvictionSettings(keep_alive=-1)
EAGER = attrs.evolve(CORTEX, min_residency_seconds=0, max_wait_seconds=0)

SCENARIOS = {
    "50 nodes, 200 models, half of it agents": {
        "nodes": 50,
        "models": 200,
        "seconds": 3600,
        "rate": 4.0,
        "agents": 0.5,
        "skew": 0.9,
    },
    "the same with mishaps": {
        "nodes": 50,
        "models": 200,
        "seconds": 3600,
        "rate": 4.0,
        "agents": 0.5,
        "skew": 0.9,
        "outages": 20,
        "pinned": 4,
        "mishaps": Mishaps(lost_poll=0.02, failed_load=0.02, slow_load=0.05),
    },
    "3 nodes, 12 models, agents": {
        "nodes": 3,
        "models": 12,
        "seconds": 3600,
        "rate": 0.5,
        "agents": 0.8,
        "skew": 0.7,
    },
}


def row(outcome: Outcome, cpu: float) -> str:
    return (
        f"| {outcome.name} | {len(outcome.fates)} | {outcome.loads} | {outcome.unloads} "
        f"| {outcome.mean_wait():.2f} | {outcome.wait(0.5):.2f} | {outcome.wait(0.9):.2f} "
        f"| {outcome.wait(0.99):.2f} | {outcome.refused} | {cpu:.1f} |"
    )


def report(scenario: Scenario) -> None:
    print("| policy | requests | loads | unloads | mean | p50 | p90 | p99 | refused | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    runners = (
        FirstComeFirstServed(scenario, PATIENCE.load_wait_seconds),
        SimulatedGateway(scenario, EAGER, PATIENCE, "cortex, without any waiting"),
        SimulatedGateway(scenario, CORTEX, PATIENCE, "cortex"),
    )
    for runner in runners:
        outcome, cpu = simulate(runner)
        print(row(outcome, cpu), flush=True)
        if outcome.refused:
            print(f"<!-- {outcome.refusals()} -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the scenarios with this in their name")
    parser.add_argument("--seconds", type=float, help="of virtual time, instead of an hour")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for title, parameters in SCENARIOS.items():
        if options.only and options.only not in title:
            continue
        if options.seconds:
            parameters = {**parameters, "seconds": options.seconds}
        print(f"\n### {title} (seed {options.seed})\n")
        report(make(options.seed, **parameters))


if __name__ == "__main__":
    main()
