"""`cortex status` and `cortex ps`: a look at the fleet."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cortex.cli.client import GatewayClient, Refused, gateway_options, open_client
from cortex.cli.exits import FAILURE, OK

Json = dict[str, Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@gateway_options
@json_option
def status(endpoint: str, key: str | None, as_json: bool) -> None:
    """Show the fleet's health, its nodes and its models.

    Ends with 1 when the fleet is degraded.
    """
    with open_client(endpoint, key) as client:
        health = client.get("/health")
        models = client.get("/v1/models").get("data") or []
        nodes = _nodes(client)
    if as_json:
        print_json({"health": health, "nodes": nodes, "models": models})
    else:
        _show_status(health, nodes, models)
    sys.exit(OK if health.get("status") == "ok" else FAILURE)


@click.command()
@gateway_options
@json_option
def ps(endpoint: str, key: str | None, as_json: bool) -> None:
    """List the models that are loaded or loading.

    SIZE is the memory a model takes, PROCESSOR the devices it is on, CONTEXT the tokens that prompt
    and answer may have together, UNTIL when it is unloaded if nobody uses it.
    """
    from cortex.cli import tables

    with open_client(endpoint, key) as client:
        residents = tables.residents_of(client.get("/fleet").get("nodes") or [])
    if as_json:
        print_json({"models": residents})
    elif residents:
        tables.console().print(tables.resident_table(residents))
    else:
        click.echo("no model is loaded")


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
        for line in tables.errors_of(nodes):
            console.print(line)
    console.print()
    if models:
        console.print(tables.models_table(models))
    else:
        click.echo("no models")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
