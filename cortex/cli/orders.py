"""`cortex load`, `unload`, `pin`, `unpin`: a hand on the fleet."""

from __future__ import annotations

import sys
import threading
from typing import Any
from urllib.parse import quote

import attrs
import click

from cortex.cli.client import GatewayClient, Refused, gateway_options, open_client
from cortex.cli.exits import Failed
from cortex.cli.fleet import json_option, print_json

Json = dict[str, Any]

LOAD = "/fleet/models/load"
POLL_SECONDS = 0.5
SILENT_POLLS = 20  # polls that may fail in a row before a load is given up: the gateway is gone


@click.command()
@click.argument("model")
@click.option("--node", help="The node to load it on; the gateway chooses if not given.")
@gateway_options
@click.option("--wait/--no-wait", default=True, help="Wait until it is loaded.  [default: wait]")
@json_option
def load(
    model: str, node: str | None, endpoint: str, key: str | None, wait: bool, as_json: bool
) -> None:
    """Load MODEL and wait until it is loaded.

    Ctrl-C stops the waiting, not the load.
    """
    with open_client(endpoint, key) as client:
        if wait:
            answer = _Load(client, _body(model, node)).run(quiet=as_json)
        else:
            answer = client.post(LOAD, {**_body(model, node), "wait": False})
    if as_json:
        print_json(answer)
    elif wait:
        click.echo(f"{model} is loaded on {answer['node']}" if "node" in answer else f"{model}: ok")
    else:
        click.echo(f"{model} is being loaded; see: cortex ps")


@click.command()
@click.argument("model")
@click.option("--node", help="The node to unload it from; all of them if not given.")
@gateway_options
@json_option
def unload(model: str, node: str | None, endpoint: str, key: str | None, as_json: bool) -> None:
    """Unload MODEL. Requests that it is serving are finished first."""
    with open_client(endpoint, key) as client:
        answer = client.post("/fleet/models/unload", _body(model, node), patient=True)
    if as_json:
        print_json(answer)
    else:
        places = ", ".join(answer.get("nodes") or [])
        click.echo(f"{model} is unloaded" + (f" from {places}" if places else ""))


@click.command()
@click.argument("model")
@click.option("--node", help="The node it is to stay on; all of them if not given.")
@gateway_options
@json_option
def pin(model: str, node: str | None, endpoint: str, key: str | None, as_json: bool) -> None:
    """Keep MODEL from being evicted or unloaded when idle, until it is unpinned.

    It is not loaded by that. Pins survive a restart of the gateway.
    """
    with open_client(endpoint, key) as client:
        answer = client.post("/fleet/models/pin", _body(model, node))
    if as_json:
        print_json(answer)
    else:
        click.echo(
            f"{answer.get('model', model)} is pinned on {answer.get('node') or 'every node'}"
        )


@click.command()
@click.argument("model")
@click.option("--node", help="The node whose pin is taken back; all pins of MODEL if not given.")
@gateway_options
@json_option
def unpin(model: str, node: str | None, endpoint: str, key: str | None, as_json: bool) -> None:
    """Take back the pins of MODEL that were set with `cortex pin`."""
    with open_client(endpoint, key) as client:
        answer = client.post("/fleet/models/unpin", _body(model, node))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer.get('model', model)} is unpinned")


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
                    self._answer = self._client.post(LOAD, self._body, patient=True)
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
                loading = self._progress()
                if loading:
                    part = tables.part_of(loading)
                    words = tables.loading_words(loading)
                    bar.update(
                        task,
                        description=f"{self._body['model']} on {loading.get('node', '?')}: {words}",
                        total=None if part is None else 1.0,
                        completed=part or 0.0,
                    )

    def _progress(self) -> Json | None:
        """How far the load is, as far as the gateway knows; `Unreachable` when that has not
        answered for long."""
        try:
            model = self._client.get(f"/v1/models/{quote(self._body['model'], safe='/')}")
            self._silent = 0
        except Refused:  # not listed yet
            return None
        except Failed:
            self._silent += 1
            if self._silent >= SILENT_POLLS:
                raise
            return None
        loading: Json | None = model.get("loading")
        return loading


def _body(model: str, node: str | None) -> Json:
    return {"model": model, **({"node": node} if node is not None else {})}
