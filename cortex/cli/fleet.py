"""`cortex status`, `ps`, `load`, `unload`: a look at the fleet, and a hand on it."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import attrs
import click

from cortex.cli.client import GatewayClient, Refused, endpoint_option, open_client
from cortex.cli.exits import FAILURE, OK, Failed

Json = dict[str, Any]

POLL_SECONDS = 0.5
SILENT_POLLS = 20  # polls that may fail in a row before a load is given up: the gateway is gone

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@endpoint_option
@json_option
def status(endpoint: str, as_json: bool) -> None:
    """Show the fleet's health, its nodes and its models.

    Ends with 1 when the fleet is degraded.
    """
    with open_client(endpoint) as client:
        health = client.get("/health")
        models = client.get("/v1/models").get("data") or []
        nodes = _nodes(client)
    if as_json:
        _print_json({"health": health, "nodes": nodes, "models": models})
    else:
        _show_status(health, nodes, models)
    sys.exit(OK if health.get("status") == "ok" else FAILURE)


@click.command()
@endpoint_option
@json_option
def ps(endpoint: str, as_json: bool) -> None:
    """List the models that are loaded or loading, with node, devices and memory."""
    from cortex.cli import tables

    with open_client(endpoint) as client:
        residents = tables.residents_of(client.get("/fleet").get("nodes") or [])
    if as_json:
        _print_json({"models": residents})
    elif residents:
        tables.console().print(tables.resident_table(residents))
    else:
        click.echo("no model is loaded")


@click.command()
@click.argument("model")
@click.option("--node", help="The node to load it on; the gateway chooses if not given.")
@endpoint_option
@json_option
def load(model: str, node: str | None, endpoint: str, as_json: bool) -> None:
    """Load MODEL and wait until it is loaded.

    Ctrl-C stops the waiting, not the load.
    """
    with open_client(endpoint) as client:
        answer = _Load(client, _body(model, node)).run(quiet=as_json)
    if as_json:
        _print_json(answer)
    else:
        click.echo(f"{model} is loaded on {answer['node']}" if "node" in answer else f"{model}: ok")


@click.command()
@click.argument("model")
@click.option("--node", help="The node to unload it from; all of them if not given.")
@endpoint_option
@json_option
def unload(model: str, node: str | None, endpoint: str, as_json: bool) -> None:
    """Unload MODEL. Requests that it is serving are finished first."""
    with open_client(endpoint) as client:
        answer = client.post("/fleet/models/unload", _body(model, node), patient=True)
    if as_json:
        _print_json(answer)
    else:
        places = ", ".join(answer.get("nodes") or [])
        click.echo(f"{model} is unloaded" + (f" from {places}" if places else ""))


@attrs.define(eq=False)
class _Load:
    """One load: the request in a thread, and its progress from the fleet meanwhile."""

    _client: GatewayClient
    _body: Json
    _answer: Json | None = attrs.field(default=None, init=False)
    _error: BaseException | None = attrs.field(default=None, init=False)
    _done: threading.Event = attrs.field(factory=threading.Event, init=False)
    _silent: int = attrs.field(default=0, init=False)

    def run(self, *, quiet: bool) -> Json:
        # A daemon: after Ctrl-C the process ends without waiting for the answer.
        threading.Thread(target=self._request, name="load", daemon=True).start()
        if quiet or not sys.stderr.isatty():
            while not self._done.wait(POLL_SECONDS):
                self._progress()
        else:
            self._show()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def _request(self) -> None:
        try:
            while self._answer is None:
                try:
                    self._answer = self._client.post("/fleet/models/load", self._body, patient=True)
                except Refused as refused:
                    # Longer than the gateway holds a request, and under way: join it again.
                    if refused.status != 503 or "loading" not in refused.error:
                        raise
                    self._done.wait(POLL_SECONDS)
        except BaseException as exc:
            self._error = exc
        self._done.set()

    def _show(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from cortex.cli import tables

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=tables.console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"loading {self._body['model']}", total=None)
            while not self._done.wait(POLL_SECONDS):
                progress = self._progress()
                if progress:
                    fraction = tables.fraction_of(progress)
                    bar.update(
                        task,
                        description=f"{self._body['model']}: {tables.progress_words(progress)}",
                        total=None if fraction is None else 1.0,
                        completed=fraction or 0.0,
                    )

    def _progress(self) -> Json | None:
        """How far the load is, as the fleet tells; `Unreachable` when it has not answered long."""
        try:
            nodes = self._client.get("/fleet").get("nodes") or []
            self._silent = 0
        except Refused:  # told from its answer alone
            return None
        except Failed:
            self._silent += 1
            if self._silent >= SILENT_POLLS:
                raise
            return None
        for node in nodes:
            for model in node.get("models") or []:
                asked = self._body.get("node") in (None, node.get("name"))
                if asked and model.get("id") == self._body["model"] and model.get("progress"):
                    progress: Json = model["progress"]
                    return progress
        return None


def _body(model: str, node: str | None) -> Json:
    return {"model": model, **({"node": node} if node is not None else {})}


def _nodes(client: GatewayClient) -> list[Json] | None:
    """The fleet's nodes; None where this caller may not see them."""
    try:
        nodes: list[Json] = client.get("/fleet").get("nodes") or []
    except Refused:
        return None
    return nodes


def _show_status(health: Json, nodes: list[Json] | None, models: list[Json]) -> None:
    from cortex.cli import tables

    counts = health.get("nodes") or {}
    click.echo(
        f"fleet: {health.get('status', 'unknown')}, "
        f"{counts.get('healthy', '?')} of {counts.get('total', '?')} nodes healthy"
    )
    console = tables.console()
    if nodes:
        console.print()
        console.print(tables.nodes_table(nodes))
    console.print()
    if models:
        console.print(tables.models_table(models))
    else:
        click.echo("no models")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
