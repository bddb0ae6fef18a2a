"""Panels and dashboards as Grafana's JSON (schema 39: Grafana 10 and newer).

Whoever adds a panel says what it shows; ids and places on the grid follow from the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]

COLUMNS = 24
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "#EAB839", "red"

# Grafana's names of units
SECONDS, BYTES, MEBIBYTES, RATIO, PERCENT = "s", "bytes", "mbytes", "percentunit", "percent"
COUNT, REQUESTS, TOKENS, CELSIUS = "short", "reqps", "suffix: tok/s", "celsius"


class Query(NamedTuple):
    """What is asked, and what a line of the answer is called."""

    expr: str
    legend: str = ""


def quantiles(family: str, matchers: str, by: str, *shares: float) -> tuple[Query, ...]:
    """Of the histogram *family*, one line for each of *shares* and each value of the label *by*."""
    return tuple(
        quantile(family, matchers, by, share, f"{{{{{by}}}}} p{share * 100:g}") for share in shares
    )


def quantile(family: str, matchers: str, by: str, share: float, legend: str) -> Query:
    buckets = f"sum by (le, {by}) (rate({family}_bucket{{{matchers}}}[$__rate_interval]))"
    return Query(f"histogram_quantile({share}, {buckets})", legend)


def rate(family: str, matchers: str, by: str, legend: str | None = None) -> Query:
    """How much the counter *family* grows a second, for each value of the labels *by*."""
    shown = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"sum by ({by}) (rate({family}{{{matchers}}}[$__rate_interval]))", legend or shown)


class Row(NamedTuple):
    title: str


class Panel(NamedTuple):
    """``limits`` are values from which on it is yellow, and red; with one only, red."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    limits: tuple[float, ...] = ()
    most: float | None = None
    low_is_bad: bool = False


def stat(title: str, description: str, unit: str, query: str, **more: Any) -> Panel:
    """One number, as it is now."""
    return Panel(title, description, unit, (Query(query),), "stat", 4, 4, **more)


def table(title: str, description: str, query: str, width: int = 12) -> Panel:
    """One line a series, one column a label."""
    return Panel(title, description, COUNT, (Query(query),), "table", width)


class Variable(NamedTuple):
    """A choice above the panels: the values of a label, all of them to begin with."""

    name: str
    query: str


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Variable],
    items: Sequence[Row | Panel],
) -> Json:
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["cortex"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "cortex",
                "tags": ["cortex"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": [_source_variable(), *map(_variable, variables)]},
        "panels": _placed(items),
    }


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "current": {},
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": variable.query, "refId": f"variable-{variable.name}"},
        "definition": variable.query,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(items: Sequence[Row | Panel]) -> list[Json]:
    """Left to right, and a new line where one is full or a row begins."""
    placed: list[Json] = []
    x = y = tallest = 0
    for number, item in enumerate(items, start=1):
        width, height = (COLUMNS, 1) if isinstance(item, Row) else (item.width, item.height)
        if x + width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        place = {"h": height, "w": width, "x": x, "y": y}
        placed.append({"id": number, "gridPos": place, **_shown(item)})
        x, tallest = x + width, max(tallest, height)
    return placed


def _shown(item: Row | Panel) -> Json:
    if isinstance(item, Row):
        return {"type": "row", "title": item.title, "collapsed": False, "panels": []}
    return {
        "type": item.kind,
        "title": item.title,
        "description": item.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _defaults(item), "overrides": []},
        "options": _options(item),
        "targets": [_target(item, index, query) for index, query in enumerate(item.queries)],
        **_transformations(item),
    }


def _target(panel: Panel, index: int, query: Query) -> Json:
    at_once = panel.kind in ("stat", "table")
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "editorMode": "code",
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        "instant": at_once,
        "range": not at_once,
    }


def _defaults(panel: Panel) -> Json:
    found: Json = {"unit": panel.unit, "thresholds": _thresholds(panel), "mappings": []}
    if panel.kind in ("timeseries", "stat"):
        found["min"] = 0
    if panel.most is not None:
        found["max"] = panel.most
    if panel.kind == "timeseries":
        found["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        }
    return found


def _thresholds(panel: Panel) -> Json:
    colours = {0: (), 1: (RED,), 2: (YELLOW, RED)}[len(panel.limits)]
    steps: list[Json] = [{"color": GREEN, "value": None}]
    if panel.low_is_bad:  # from red, over yellow, to green
        colours = (*reversed(colours[:-1]), GREEN)
        steps = [{"color": RED, "value": None}]
    steps += [{"color": c, "value": v} for c, v in zip(colours, panel.limits, strict=True)]
    return {"mode": "absolute", "steps": steps}


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "colorMode": "value" if panel.limits else "none",
                "graphMode": "none",
                "textMode": "value",
            }
        case "table":
            return {"showHeader": True}
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
                "legend": {"show": True},
            }
        case _:
            return {
                "legend": {
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": True,
                    "calcs": ["lastNotNull", "max"],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def _transformations(panel: Panel) -> Json:
    if panel.kind != "table":
        return {}
    hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
    return {"transformations": [{"id": "organize", "options": {"excludeByName": hidden}}]}
