"""`cortex top`: the fleet at work, in a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any

import attrs
import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cortex.cli import tables
from cortex.cli.client import GatewayClient, Refused, gateway_options, open_client
from cortex.cli.exits import Failed, shown
from cortex.cli.fleet import json_option, print_json
from cortex.wire import json
from cortex.wire.sse import FrameReader

Json = dict[str, Any]

REFRESH_SECONDS = 1.0
EVENTS_SHOWN = 8
RETRY_SECONDS = 2.0  # between two tries to follow the events
# Fields of an event that its line tells in words of its own.
_TOLD = frozenset({"kind", "at", "model", "node", "stage", "progress", "eta", "plan"})


@click.command()
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=REFRESH_SECONDS,
    show_default=True,
    help="Seconds between two pictures.",
)
@gateway_options
@json_option
def top(once: bool, interval: float, endpoint: str, key: str | None, as_json: bool) -> None:
    """Show requests, speeds, queues and memory as they change; Ctrl-C ends it.

    Where there is no terminal, or with --json, one picture is printed, as with --once.
    """
    with open_client(endpoint, key) as client:
        fleet = client.get("/fleet")
        screen = tables.console()
        if as_json:
            print_json(fleet)
        elif once or not screen.is_terminal or screen.is_dumb_terminal:
            screen.print(picture(fleet, ()))
        else:
            _Watching(client, fleet, interval).run(screen)


def picture(fleet: Json, happened: tuple[Json, ...]) -> Group:
    """Everything on one screen: totals, nodes, models, what waits, and what *happened*."""
    nodes = fleet.get("nodes") or []
    residents = tables.residents_of(nodes)
    parts: list[Any] = [_totals(nodes, residents, fleet.get("waiting") or {})]
    if nodes:
        parts += [Text(""), _nodes(nodes)]
    if residents:
        parts += [Text(""), _models(residents, fleet.get("waiting") or {})]
    coming = {name: n for name, n in (fleet.get("waiting") or {}).items() if n}
    for name in sorted(coming.keys() - {model.get("id") for model in residents}):
        parts.append(Text(shown(f"{coming[name]} waiting for {name}"), "yellow"))
    if happened:
        parts += [Text(""), *(Text(event_line(event), "dim") for event in happened)]
    return Group(*parts)


def event_line(event: Json) -> str:
    """An event of the fleet in one line."""
    at = event.get("at")
    clock = time.strftime("%H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else ""
    words = [clock, str(event.get("kind"))]
    words += [str(event[name]) for name in ("model",) if event.get(name)]
    words += [f"on {event['node']}"] if event.get("node") else []
    if event.get("stage"):
        words.append(tables.loading_words(event))
    words += [f"{name}={value}" for name, value in event.items() if name not in _TOLD]
    return shown(" ".join(word for word in words if word))


def _totals(nodes: list[Json], residents: list[Json], waiting: Json) -> Text:
    healthy = sum(bool(node.get("healthy")) for node in nodes)
    flying = sum(model.get("in_flight") or 0 for model in residents)
    speeds = [model["tok_s_decode"] for model in residents if model.get("tok_s_decode")]
    total = Text(f"{healthy} of {len(nodes)} nodes healthy, {flying} requests in flight")
    total.append(f", {sum(waiting.values())} waiting")
    if speeds:
        total.append(f", {sum(speeds):.0f} tok/s")
    return total


def _nodes(nodes: list[Json]) -> Table:
    drawn = tables.table("NODE", "DEVICE", "BUSY", "USED", "TOTAL", "TEMP")
    for node in nodes:
        name = Text(shown(str(node.get("name"))), "" if node.get("healthy") else "red")
        for device in node.get("devices") or [{}]:
            drawn.add_row(
                name,
                shown(str(device.get("name", tables.UNKNOWN))),
                _percent(device.get("utilization_pct")),
                tables.mebibytes(device.get("vram_used_mb")),
                tables.mebibytes(device.get("vram_total_mb")),
                f"{device['temp_c']} °C" if "temp_c" in device else tables.UNKNOWN,
            )
            name = Text("")
    return drawn


def _models(residents: list[Json], waiting: Json) -> Table:
    drawn = tables.table(
        "MODEL", "NODE", "STATE", "IN FLIGHT", "QUEUED", "WAITING", "TOK/S", "SIZE", "UNTIL"
    )
    for model in residents:
        speed = model.get("tok_s_decode")
        drawn.add_row(
            shown(str(model.get("id"))),
            shown(str(model.get("node"))),
            tables.state_text(model),
            _count(model.get("in_flight")),
            _count(model.get("queue_depth")),
            _count(waiting.get(str(model.get("id")), 0)),
            f"{speed:.1f}" if isinstance(speed, int | float) else tables.UNKNOWN,
            tables.mebibytes(model.get("vram_used_mb")),
            tables.until_words(model) or tables.UNKNOWN,
        )
    return drawn


def _count(value: object) -> str:
    return str(value) if isinstance(value, int) else tables.UNKNOWN


def _percent(value: object) -> str:
    return f"{value} %" if isinstance(value, int) else tables.UNKNOWN


@attrs.define(eq=False)
class _Watching:
    """The live view: pictures in this thread, events in another one."""

    _client: GatewayClient
    _fleet: Json
    _interval: float
    _happened: deque[Json] = attrs.field(factory=lambda: deque(maxlen=EVENTS_SHOWN), init=False)
    _trouble: str | None = attrs.field(default=None, init=False)

    def run(self, console: Console) -> None:
        # A daemon: it may wait for the next event for ever when the view is left.
        threading.Thread(target=self._follow, name="events", daemon=True).start()
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(self._draw(), refresh=True)
                    time.sleep(self._interval)
                    self._look()
        except KeyboardInterrupt:
            sys.exit(0)

    def _draw(self) -> Group:
        drawn = picture(self._fleet, tuple(self._happened))
        if self._trouble is None:
            return drawn
        return Group(Text(shown(self._trouble), "red"), drawn)

    def _look(self) -> None:
        """The next picture; the last one stays while the gateway does not answer."""
        try:
            self._fleet = self._client.get("/fleet")
            self._trouble = None
        except Refused:
            raise  # the key was revoked, say
        except Failed as failed:
            self._trouble = failed.message

    def _follow(self) -> None:
        while True:
            try:
                with self._client.stream("/fleet/events") as chunks:
                    reader = FrameReader()
                    for chunk in chunks:
                        for frame in reader.feed(chunk):
                            if frame.data is not None and frame.event != "snapshot":
                                self._happened.append(json.load_object(frame.data))
            except Exception as failed:  # the view says it when the pictures fail too
                self._happened.append({"kind": "events are not to be had", "why": str(failed)})
            time.sleep(RETRY_SECONDS)
