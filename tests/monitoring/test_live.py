"""A live `cortex up`: it exports what rules and dashboards ask for, and a real Prometheus that
scrapes it answers every query of every panel. The first half needs no Prometheus."""

from __future__ import annotations

import re
from typing import Any

import pytest
from monitoring import gpu_node
from monitoring.live import Cortex, Prometheus, families, until
from monitoring.shipped import ROOT, metrics_in, panels, rules

OPERATIONS = ROOT / "docs" / "operations.md"

ENDINGS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}

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
ASKED = {**QUERIES, **{rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}}


@pytest.fixture(scope="module")
def exported(cortex: Cortex) -> dict[str, str]:
    return families(cortex.exposition("gateway")) | families(cortex.exposition("neuron"))


def test_the_names_in_a_query_are_found():
    query = 'sum by (le) (rate(cortex_a_bucket{model=~"neuron_x"}[5m])) / model:cortex_b:rate5m'
    assert metrics_in(query) == {"cortex_a_bucket", "model:cortex_b:rate5m"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_a_query_asks_for_what_is_exported(exported, name):
    series = {family + end for family, kind in exported.items() for end in ENDINGS[kind]}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = metrics_in(ASKED[name])
    assert named or "up{" in ASKED[name], "no metric was found in it"
    assert named <= series | recorded


@pytest.mark.slow
def test_what_is_exported_is_explained(exported):
    explained = set(re.findall(r"`((?:cortex|neuron)_[a-z_]+)`", OPERATIONS.read_text()))
    ours = {name for name in exported if not name.startswith("process_")}
    assert len(ours) > 60
    assert ours == explained


@pytest.mark.slow
def test_the_process_is_told_of_by_both_roles(cortex: Cortex):
    usual = {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"}
    for role in ("gateway", "neuron"):
        assert usual <= set(families(cortex.exposition(role)))


@pytest.mark.slow
def test_the_free_disk_of_what_is_written_to_is_told(cortex: Cortex):
    told = cortex.exposition("gateway") + cortex.exposition("neuron")
    kinds = re.findall(r'^(\w+)_disk_free_bytes{path_kind="(\w+)"} (\S+)$', told, re.MULTILINE)
    found = {(role, kind) for role, kind, value in kinds if float(value) > 0}
    assert found == {("cortex", "state"), ("neuron", "state"), ("neuron", "models")}


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
