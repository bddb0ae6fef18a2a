"""The dashboards as files: what the generator writes, and sound as far as can be told without
Grafana."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from monitoring.shipped import DASHBOARDS, MONITORING, ROOT, panels, rules

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
KINDS = {"timeseries", "stat", "table", "heatmap"}
PANELS = {f"{dashboard}: {panel['title']}": panel for dashboard, panel in panels()}


def load(path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_they_are_what_the_generator_writes(tmp_path):
    writer = MONITORING / "grafana" / "write.py"
    subprocess.run([sys.executable, "-B", writer, tmp_path], check=True, timeout=60)
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_text() for file in DASHBOARDS}


def test_there_are_three_with_uids_of_their_own():
    uids = {load(file)["uid"]: file.stem for file in DASHBOARDS}
    assert uids == {"cortex-fleet": "fleet", "cortex-model": "model", "cortex-neuron": "neuron"}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_can_be_imported(file):
    board = load(file)
    assert "id" not in board  # Grafana's own number, which would clash
    assert (board["refresh"], board["schemaVersion"]) == ("15s", 39)
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "node", "model"}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("node", "model"):
        assert variables[name]["datasource"] == SOURCE
        assert variables[name]["allValue"] == ".*"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_have_ids_and_places_of_their_own(file):
    found = load(file)["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    places = [panel["gridPos"] for panel in found]
    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_is_explained_and_has_a_unit_and_a_source(name):
    panel = PANELS[name]
    assert panel["type"] in KINDS
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)
    assert panel["datasource"] == SOURCE
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == sorted(set(letters))
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["instant"] is not target["range"]


@pytest.mark.parametrize("name", PANELS)
def test_the_lines_of_a_panel_can_be_told_apart(name):
    """Each label of a legend is one that the query keeps; no two queries have one legend."""
    panel = PANELS[name]
    if panel["type"] in ("stat", "table"):
        return
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    for target in panel["targets"]:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert shown
        for kept in re.findall(r"sum by \(([^)]*)\)", target["expr"]):
            assert shown == set(kept.split(", ")) - ({"le"} - shown)


def test_faults_are_what_the_rules_take_for_faults():
    (rule,) = [rule for rule in rules() if rule.get("record") == "model:cortex_faults:rate5m"]
    (codes,) = re.findall(r'reason=~"([^"]+)"', rule["expr"])
    assert f'reason=~"{codes}"' in PANELS["cortex: fleet: Faults"]["targets"][0]["expr"]


def test_the_guide_names_panels_that_are_there():
    text = (ROOT / "docs" / "alerts.md").read_text()
    titles = {panel["title"] for panel in PANELS.values()}
    named = re.findall(r"\*([A-Z][^*.]+)\*", text) + re.findall(r"\*([A-Z][^*.]+)\* of the", text)
    assert {name.replace("\n", " ") for name in named} - {"Critical"} <= titles


def test_the_files_for_provisioning_are_yaml_with_what_grafana_asks_for():
    folder = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasource.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((folder / "dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"].startswith("/var/lib/grafana/")
