"""The files of packaging/monitoring, and the metrics that a query in them asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "packaging" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
SCRAPE = PROMETHEUS / "cortex-scrape.yml"
RULES = (PROMETHEUS / "cortex-recording.yml", PROMETHEUS / "cortex-alerts.yml")
DASHBOARDS = tuple(sorted((MONITORING / "grafana" / "dashboards").glob("*.json")))

METRIC = re.compile(r"(?<![\w:\"])(?:[a-z0-9_]+:)?(?:cortex|neuron|process)_[a-z0-9_:]+")


def rules() -> list[dict[str, Any]]:
    """Every rule, recording and alerting."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Every panel that shows something, with its dashboard's title."""
    found = []
    for file in DASHBOARDS:
        dashboard = json.loads(file.read_text())
        found += [(dashboard["title"], p) for p in dashboard["panels"] if p["type"] != "row"]
    return found


def metrics_in(query: str) -> set[str]:
    """The names of series in a query, without what stands in quotation marks."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', query)))
