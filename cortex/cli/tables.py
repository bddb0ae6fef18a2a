"""What the fleet commands show, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

UNKNOWN = "–"
_STYLES = {"loaded": "green", "loading": "yellow", "recovering": "red", "failed": "red"}
_NUMERIC = frozenset({"VRAM", "USED", "TOTAL", "IN FLIGHT", "CONTEXT", "REQUESTS", "ERRORS"})
_NUMERIC |= {"SIZE", "PROMPT", "CACHED", "COMPLETION"}
PIPED_WIDTH = 200  # columns where there is no terminal: nothing is cut for a pipe


def console(*, stderr: bool = False) -> Console:
    plain = Console(stderr=stderr)
    if plain.is_terminal:
        return plain
    return Console(stderr=stderr, width=PIPED_WIDTH)


def table(*columns: str) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = column in _NUMERIC
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return drawn


def nodes_table(nodes: Iterable[Json]) -> Table:
    drawn = table("NODE", "STATE", "VERSION", "DEVICES", "USED", "TOTAL", "ENDPOINT")
    for node in nodes:
        devices = node.get("devices") or []
        drawn.add_row(
            _text(node.get("name")),
            _node_state(node),
            _text(node.get("version")),
            _text(", ".join(str(d.get("name", "?")) for d in devices) or None),
            mebibytes(_sum(d.get("vram_used_mb") for d in devices)),
            mebibytes(_sum(d.get("vram_total_mb") for d in devices)),
            _text(node.get("endpoint")),
        )
    return drawn


def errors_of(nodes: Iterable[Json]) -> list[Text]:
    """A line for each node that is away and each model that failed: why, as far as is known."""
    told: list[str] = []
    for node in nodes:
        if node.get("error") and not node.get("healthy"):
            told.append(f"{node.get('name')}: {node['error']}")
        told += [
            f"{model.get('id')} on {node.get('name')}: {model['error']}"
            for model in node.get("models") or []
            if model.get("error")
        ]
    return [_text(line) for line in told]


def _node_state(node: Json) -> Text:
    if not node.get("healthy"):
        return Text("unreachable", "red")
    if node.get("circuit") not in (None, "closed"):
        return Text("circuit open", "red")
    status = node.get("status") or "ok"
    return Text("healthy", "green") if status == "ok" else _text(status)


def models_table(models: Iterable[Json]) -> Table:
    """Of the entries of ``/v1/models``."""
    drawn = table("MODEL", "STATE", "NODES", "CONTEXT", "VRAM")
    for model in models:
        locations = model.get("locations") or []
        drawn.add_row(
            _text(model.get("id")),
            state_text({**model, "status": state_of(model)}),
            _text(", ".join(sorted({str(place.get("node")) for place in locations})) or None),
            _text((model.get("limit") or {}).get("context")),
            mebibytes(_sum(place.get("vram_estimate_mb") for place in locations)),
        )
    return drawn


def resident_table(residents: Iterable[Json]) -> Table:
    """Of the models `residents_of` finds."""
    drawn = table("MODEL", "NODE", "STATE", "SIZE", "PROCESSOR", "CONTEXT", "IN FLIGHT", "UNTIL")
    for model in residents:
        drawn.add_row(
            _text(model.get("id")),
            _text(model.get("node")),
            state_text(model),
            mebibytes(model.get("vram_used_mb")),
            _text(model.get("processor")),
            _text(model.get("context")),
            _text(model.get("in_flight")),
            _text(until_words(model)),
        )
    return drawn


def state_text(model: Json) -> Text:
    """The state of a resident, and how far its load is."""
    status = str(model.get("status"))
    shown = Text(status, _STYLES.get(status, "dim"))
    if model.get("loading"):
        shown.append(" ").append_text(_text(loading_words(model["loading"])))
    return shown


def until_words(model: Json) -> str | None:
    """When a resident goes if nobody uses it; None for one that is not loaded."""
    if model.get("status") != "loaded":
        return None
    if model.get("pinned"):
        return "pinned"
    if model.get("in_flight"):
        return "in use"
    left = model.get("expires_in")
    return "stays" if not isinstance(left, int | float) else f"in {duration(left)}"


def keys_table(keys: Iterable[Json]) -> Table:
    """Of keys as `cortex keys` describes them."""
    drawn = table("ID", "NAME", "STATE", "SCOPES", "MODELS", "LIMITS", "PRIORITY", "EXPIRES")
    for key in keys:
        limits = [f"{key[name]} {name}" for name in ("rpm", "tpm") if name in key]
        if "budget" in key:
            limits.append(f"{key['budget']} tokens a {key['period']}")
        drawn.add_row(
            _text(key["id"]),
            _text(key["name"]),
            Text(key["state"], "green" if key["state"] == "active" else "dim"),
            _text(", ".join(key["scopes"])),
            _text(", ".join(key["models"]) or "all"),
            _text(", ".join(limits) or None),
            _text(key["priority"]),
            _text(key.get("expires")),
        )
    return drawn


def usage_table(by: Iterable[str], rows: Iterable[Json]) -> Table:
    """Of rows of usage, summed up *by* these columns."""
    sums = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")
    headings = (name.removesuffix("_tokens").upper() for name in (*by, *sums))
    drawn = table(*headings)
    for row in rows:
        drawn.add_row(*(_text(row[name]) for name in (*by, *sums)))
    return drawn


def residents_of(nodes: Iterable[Json]) -> list[Json]:
    """Every model that is on a node or on its way, with the node's name and the processors."""
    return [
        {"node": node.get("name"), "processor": processor_of(node, model), **model}
        for node in nodes
        for model in node.get("models") or []
        if model.get("status") != "unloaded"
    ]


def processor_of(node: Json, model: Json) -> str | None:
    """The kind and the indices of the devices *model* is on: ``cuda 0,1``."""
    kinds: dict[str, list[str]] = {}
    known = {device.get("index"): device.get("kind") for device in node.get("devices") or []}
    for index in model.get("devices") or []:
        kinds.setdefault(str(known.get(index) or "device"), []).append(str(index))
    words = [kind if kind == "cpu" else f"{kind} {','.join(own)}" for kind, own in kinds.items()]
    return " + ".join(words) or None


def state_of(model: Json) -> str:
    """The state of an entry of ``/v1/models``: what the gateway says, or its first location's."""
    if model.get("status"):
        return str(model["status"])
    states = [str(place.get("status")) for place in model.get("locations") or []]
    if model.get("loaded"):
        return "loaded"
    return states[0] if states else "unloaded"


def part_of(loading: Json) -> float | None:
    """How much of a load's stage is done, 0 to 1; None when that is not known."""
    part = loading.get("progress")
    return min(1.0, max(0.0, part)) if isinstance(part, int | float) else None


def loading_of(progress: Json) -> Json:
    """What a neuron says of a load, as a gateway puts it: ``{stage, progress, eta}``."""
    done, total = progress.get("bytes_done"), progress.get("bytes_total")
    loading = {"stage": progress.get("stage"), "eta": progress.get("eta_seconds")}
    if isinstance(done, int) and isinstance(total, int) and total > 0:
        loading["progress"] = done / total
    return loading


def loading_words(loading: Json) -> str:
    """``weights 42%, 12 s left``, as far as known."""
    part, eta = part_of(loading), loading.get("eta")
    words = str(loading.get("stage") or "loading")
    if part is not None:
        words += f" {part:.0%}"
    return words + (f", {duration(eta)} left" if isinstance(eta, int | float) else "")


def duration(seconds: float) -> str:
    """``12 s``, ``29 min``, ``3 h``: rounded up, so that what is to come is never 0 min away."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{math.ceil(seconds / 3600)} h"


def mebibytes(value: object) -> str:
    if not isinstance(value, int):
        return UNKNOWN
    return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value} MiB"


def _sum(values: Iterable[object]) -> int | None:
    known = [value for value in values if isinstance(value, int)]
    return sum(known) if known else None


def _text(value: object) -> Text:
    """*value* as itself: what a server sends is not markup, and moves no cursor."""
    if value is None:
        return Text(UNKNOWN, "dim")
    return Text("".join(c if c.isprintable() else "?" for c in str(value)))
