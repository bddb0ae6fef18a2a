"""A real Prometheus scrapes a live `cortex up`; every panel of the dashboards shows something."""

from __future__ import annotations

from typing import Any

import pytest
from monitoring import gpu_node
from monitoring.live import Prometheus, until
from monitoring.shipped import panels, rules

BOUND = 40.0  # seconds for a query's first answer
HERE = "local|unknown"  # what is no fault of a node's counts under the second

QUERIES = {
    f"{dashboard}: {panel['title']} {target['refId']}": target["expr"]
    for dashboard, panel in panels()
    for target in panel["targets"]
}
# What a healthy node without a GPU has no series for: proven on a node that is made up.
MADE_UP = {
    "cortex: fleet: GPU utilisation A",
    "cortex: fleet: GPU temperature A",
    "cortex: fleet: Clients that left, and retries B",
    "cortex: node: GPU utilisation A",
    "cortex: node: GPU temperature A",
    "cortex: node: Requests that failed A",
    "cortex: node: Engines that failed A",
}


def asked(query: str, node: str) -> str:
    """*query* as Grafana would send it with *node* chosen, all models, and a short interval."""
    return query.replace("$__rate_interval", "6s").replace("$node", node).replace("$model", ".*")


@pytest.mark.slow
def test_the_targets_are_up(watched: Prometheus):
    def targets() -> dict[str, str] | None:
        found = watched.get("targets")["activeTargets"]
        told = {target["labels"]["job"]: target["health"] for target in found}
        return told if set(told.values()) == {"up"} else None

    up = until(targets, BOUND)
    assert up is not None, watched.get("targets")
    assert {"cortex-gateway", "cortex-neuron"} <= set(up)


@pytest.mark.slow
def test_the_rules_are_evaluated_without_an_error(watched: Prometheus):
    def evaluated() -> list[dict[str, Any]] | None:
        groups = watched.get("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else None

    found = until(evaluated, BOUND)
    assert found is not None
    assert [rule for rule in found if rule["health"] != "ok"] == []
    assert len(found) == len(rules())


@pytest.mark.slow
def test_the_recording_rules_record(watched: Prometheus):
    names = {rule["record"] for rule in rules() if "record" in rule}

    def missing() -> bool:
        return not [name for name in names if not watched.values(name)]

    assert until(missing, BOUND), [name for name in names if not watched.values(name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_of_every_panel_has_an_answer(watched: Prometheus, name: str):
    made_up = name in MADE_UP
    query = asked(QUERIES[name], gpu_node.NODE if made_up else HERE)
    assert until(lambda: watched.values(query), BOUND), query
    if made_up:
        assert watched.values(asked(QUERIES[name], HERE)) == []


def test_what_is_made_up_is_among_the_panels():
    assert set(QUERIES) >= MADE_UP
