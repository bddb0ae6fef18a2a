"""Rules and dashboards ask for what the roles export, and for nothing else; needs no Prometheus."""

from __future__ import annotations

import re

import pytest
from monitoring.live import Cortex, families
from monitoring.shipped import ROOT, metrics_in, panels, rules

OPERATIONS = ROOT / "docs" / "operations.md"

ENDINGS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}
QUERIES = {
    **{
        f"{title}: {p['title']} {t['refId']}": t["expr"]
        for title, p in panels()
        for t in p["targets"]
    },
    **{rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()},
}


@pytest.fixture(scope="module")
def exported(cortex: Cortex) -> dict[str, str]:
    return families(cortex.exposition("gateway")) | families(cortex.exposition("neuron"))


def test_the_names_in_a_query_are_found():
    query = 'sum by (le) (rate(cortex_a_bucket{model=~"neuron_x"}[5m])) / model:cortex_b:rate5m'
    assert metrics_in(query) == {"cortex_a_bucket", "model:cortex_b:rate5m"}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_what_is_exported(exported, name):
    series = {family + end for family, kind in exported.items() for end in ENDINGS[kind]}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = metrics_in(QUERIES[name])
    assert named or "up{" in QUERIES[name], "no metric was found in it"
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
