"""What the fleet commands show, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

UNKNOWN = "–"
_STYLES = {"loaded": "green", "loading": "yellow", "recovering": "red", "failed": "red"}
PIPED_WIDTH = 200  # columns where there is no terminal: nothing is cut for a pipe


def console(*, stderr: bool = False) -> Console:
    plain = Console(stderr=stderr)
    if plain.is_terminal:
        return plain
    return Console(stderr=stderr, width=PIPED_WIDTH)


def table(*columns: str) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = column in ("VRAM", "USED", "TOTAL", "IN FLIGHT", "CONTEXT")
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return drawn


def nodes_table(nodes: Iterable[Json]) -> Table:
    drawn = table("NODE", "STATE", "VERSION", "DEVICES", "USED", "TOTAL", "ENDPOINT")
    for node in nodes:
        devices = node.get("devices") or []
        healthy = bool(node.get("healthy"))
        drawn.add_row(
            _text(node.get("name")),
            Text("healthy", "green") if healthy else Text("unreachable", "red"),
            _text(node.get("version")),
            _text(", ".join(str(d.get("name", "?")) for d in devices) or None),
            mebibytes(_sum(d.get("vram_used_mb") for d in devices)),
            mebibytes(_sum(d.get("vram_total_mb") for d in devices)),
            _text(node.get("endpoint")),
        )
    return drawn


def models_table(models: Iterable[Json]) -> Table:
    """Of the entries of ``/v1/models``."""
    drawn = table("MODEL", "STATE", "NODES", "CONTEXT", "VRAM")
    for model in models:
        locations = model.get("locations") or []
        state = state_of(model)
        drawn.add_row(
            _text(model.get("id")),
            Text(state, _STYLES.get(state, "dim")),
            _text(", ".join(sorted({str(place.get("node")) for place in locations})) or None),
            _text((model.get("limit") or {}).get("context")),
            mebibytes(_sum(place.get("vram_estimate_mb") for place in locations)),
        )
    return drawn


def resident_table(residents: Iterable[Json]) -> Table:
    """Of the models `residents_of` finds."""
    drawn = table("MODEL", "STATE", "NODE", "DEVICES", "VRAM", "IN FLIGHT")
    for model in residents:
        status = str(model.get("status"))
        shown = Text(status, _STYLES.get(status, ""))
        if model.get("progress"):
            shown.append(f" {progress_words(model['progress'])}")
        drawn.add_row(
            _text(model.get("id")),
            shown,
            _text(model.get("node")),
            _text(", ".join(str(index) for index in model.get("devices") or []) or None),
            mebibytes(model.get("vram_used_mb")),
            _text(model.get("in_flight")),
        )
    return drawn


def residents_of(nodes: Iterable[Json]) -> list[Json]:
    """Every model that is on a node or on its way, with the node's name."""
    return [
        {"node": node.get("name"), **model}
        for node in nodes
        for model in node.get("models") or []
        if model.get("status") != "unloaded"
    ]


def state_of(model: Json) -> str:
    """The state of an entry of ``/v1/models``: what the gateway says, or its first location's."""
    if model.get("status"):
        return str(model["status"])
    states = [str(place.get("status")) for place in model.get("locations") or []]
    if model.get("loaded"):
        return "loaded"
    return states[0] if states else "unloaded"


def fraction_of(progress: Json) -> float | None:
    """How much of a load's stage is done, 0 to 1; None when that is not known."""
    done, total = progress.get("bytes_done"), progress.get("bytes_total")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return None
    return min(1.0, done / total)


def progress_words(progress: Json) -> str:
    fraction = fraction_of(progress)
    stage = str(progress.get("stage") or "loading")
    return stage if fraction is None else f"{stage} {fraction:.0%}"


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
