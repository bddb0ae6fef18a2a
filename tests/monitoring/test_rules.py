"""The alert and recording rules: valid, explained, and each alert fires when it should only."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.programs import program
from monitoring.alert_cases import AGAIN, CASES, Case, Series
from monitoring.shipped import MONITORING, ROOT, RULES, SCRAPE, alerts, rules

import cortex.errors
from cortex.errors import CortexError, Overloaded

GUIDE = ROOT / "docs" / "alerts.md"


def promtool(*arguments: object) -> str:
    """What promtool says; it must be content."""
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_promtool_finds_nothing_wrong_with_the_rules():
    told = promtool("check", "rules", *RULES)
    assert sum(map(int, re.findall(r"SUCCESS: (\d+) rules found", told))) == len(rules())


def test_promtool_finds_nothing_wrong_with_the_scrape_configuration(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    (told,) = re.findall(r"credentials_file: (\S+)", SCRAPE.read_text())
    config = tmp_path / "prometheus.yml"
    files = json.dumps([str(file) for file in RULES])
    config.write_text(SCRAPE.read_text().replace(told, str(token)) + f"rule_files: {files}\n")
    assert "is valid prometheus config file" in promtool("check", "config", config)


def firing(alert: str, series: Series, at: int, expected: list[str]) -> dict[str, Any]:
    """promtool's test that *alert* is what *expected* says at minute *at*."""
    count = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                **count,
                "eval_time": f"{at}m",
                "exp_samples": [{"labels": "{}", "value": 1} for _ in expected],
            },
            *(
                {
                    "expr": f"count({labels})",
                    "eval_time": f"{at}m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
                for labels in expected
            ),
        ],
    }


def prove(tmp_path: Path, *tests: dict[str, Any]) -> None:
    """Let promtool run *tests*."""
    whole = {
        "rule_files": [str(file) for file in RULES],
        "evaluation_interval": "1m",
        "tests": tests,
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(whole))  # JSON is YAML
    promtool("test", "rules", file)


def test_amtool_finds_nothing_wrong_with_the_example_of_a_route():
    done = subprocess.run(
        [program("amtool"), "check-config", MONITORING / "alertmanager.example.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    route = yaml.safe_load((MONITORING / "alertmanager.example.yml").read_text())
    named = set(re.findall(r"Cortex[A-Z]\w+", json.dumps(route["inhibit_rules"])))
    assert named
    assert named <= set(alerts())


def labelled(alert: str, case: Case) -> str:
    """The series of *alert* while it fires, with the labels that its words name."""
    severity = alerts()[alert]["labels"]["severity"]
    told = {"alertname": alert, "alertstate": "firing", "severity": severity, **case.labels}
    return "ALERTS{" + ",".join(f'{name}="{value}"' for name, value in told.items()) + "}"


def test_every_alert_has_a_case():
    assert list(CASES) == list(alerts())


@pytest.mark.parametrize(
    ("alert", "case"),
    [*CASES.items(), ("CortexEngineRestarted", AGAIN)],
    ids=[*CASES, "CortexEngineRestarted again"],
)
def test_it_fires_when_it_should_and_only_then(tmp_path, alert, case):
    silent = case.silent
    if alert != "CortexGatewayDown":  # which is also about targets that nobody has heard of
        silent = silent | {'up{job="cortex-gateway",instance="g"}': f"1x{case.at + 60}"}
    prove(
        tmp_path,
        firing(alert, case.fires, case.at, [labelled(alert, case)]),
        firing(alert, silent, case.at, []),
    )


def test_a_gateway_that_is_no_target_any_more_is_down(tmp_path):
    expected = ['ALERTS{alertname="CortexGatewayDown",job="cortex-gateway",alertstate="firing"}']
    prove(tmp_path, firing("CortexGatewayDown", {"other": "1x60"}, 20, expected))


def test_a_few_slow_streams_spend_no_budget(tmp_path):
    family = "cortex_time_to_first_token_seconds"
    series = {
        f'{family}_bucket{{model="m",le="5.0"}}': "0x400",
        f'{family}_count{{model="m"}}': "0x20 1x20 2x20 3x400",
    }
    prove(tmp_path, firing("CortexFirstTokenBudgetFast", series, 65, []))


def test_the_words_are_filled_in(tmp_path):
    """One alert, word for word, as Alertmanager gets it."""
    test = {
        "interval": "1m",
        "input_series": [
            {"series": s, "values": v} for s, v in CASES["CortexDiskLow"].fires.items()
        ],
        "alert_rule_test": [
            {
                "eval_time": "20m",
                "alertname": "CortexDiskLow",
                "exp_alerts": [
                    {
                        "exp_labels": {
                            "severity": "warning",
                            "job": "cortex-gateway",
                            "instance": "i",
                            "path_kind": "state",
                        },
                        "exp_annotations": {
                            "summary": "A disk that cortex writes to is getting full",
                            "description": "cortex-gateway at i: 9% is free where it keeps state.",
                            "runbook_url": alerts()["CortexDiskLow"]["annotations"]["runbook_url"],
                        },
                    }
                ],
            }
        ],
    }
    prove(tmp_path, test)


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_how_bad_it_is_what_it_is_about_and_what_to_read(alert):
    rule, case = alerts()[alert], CASES[alert]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    said = rule["annotations"]
    assert said.keys() == {"summary", "description", "runbook_url"}
    named = set(re.findall(r"\$labels\.(\w+)", said["description"]))
    assert named, "no label tells what it is about"
    assert case.labels.keys() <= named, "a case whose labels nobody reads"
    assert "{{" not in said["summary"]  # Alertmanager groups by it
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = project["urls"]["Source"]
    assert said["runbook_url"] == f"{source}/blob/main/docs/alerts.md#{alert.lower()}"


def test_every_alert_is_explained_and_no_other():
    explained = re.findall(r"^### (\w+)$", GUIDE.read_text(), re.MULTILINE)
    assert explained == list(alerts())


@pytest.mark.parametrize("alert", alerts())
def test_an_explanation_has_three_parts(alert):
    part = GUIDE.read_text().partition(f"\n### {alert}\n")[2].partition("\n##")[0]
    for begin in ("*Means.* ", "*Look at.* ", "*Do.* "):
        assert f"\n{begin}" in part, begin


def test_the_faults_are_the_codes_that_are_not_the_callers():
    classes = [CortexError]
    for cls in classes:
        classes += cls.__subclasses__()
    # Subclasses elsewhere are for their own layer; to clients they are what they derive from.
    told = [cls for cls in classes if cls.__module__ == cortex.errors.__name__]
    assert told
    ours = {cls.code for cls in told if cls.status >= 500} | {Overloaded.code}
    ours |= {"error", "draining"}  # an exchange's own: a class without a code, and a cut stream
    (rule,) = [rule for rule in rules() if rule.get("record") == "model:cortex_faults:rate5m"]
    (listed,) = re.findall(r'reason=~"([^"]+)"', rule["expr"])
    assert listed.split("|") == sorted(ours)
