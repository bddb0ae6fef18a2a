"""`cortex reload`: have a gateway read its configuration again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from cortex.cli.client import gateway_options, open_client
from cortex.cli.exits import shown
from cortex.cli.fleet import json_option, print_json

Json = dict[str, Any]


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@gateway_options
@json_option
def reload(dry_run: bool, endpoint: str, key: str | None, as_json: bool) -> None:
    """Have the gateway read cortex.toml and models.toml again, and put them in force.

    Running streams go on. An invalid file changes nothing. SIGHUP to the gateway does the same.
    """
    with open_client(endpoint, key) as client:
        answer = client.post("/fleet/reload" + ("?dry_run=true" if dry_run else ""), {})
    if as_json:
        print_json(answer)
        return
    plan = answer.get("plan") or {}
    for warning in plan.get("warnings") or []:
        click.echo(f"warning: {shown(warning)}", err=True)
    lines = list(plan_lines(plan))
    click.echo("\n".join(lines) if lines else "nothing changes" if dry_run else "nothing changed")


def plan_lines(plan: Json) -> Iterator[str]:
    """What a plan says would change, a line each."""
    for change in plan.get("settings") or []:
        line = f"{change.get('key')}: {change.get('before')} -> {change.get('after')}"
        yield shown(line) + (" (needs a restart)" if change.get("needs_restart") else "")
    for what, gone in (("nodes", "drained"), ("models", "removed"), ("aliases", "removed")):
        names = plan.get(what) or {}
        for verb, label in (("added", "added"), ("changed", "changed"), ("removed", gone)):
            if names.get(verb):
                yield shown(f"{what} {label}: {', '.join(map(str, names[verb]))}")
    models = plan.get("models") or {}
    again = [(each.get("node"), each.get("model")) for each in models.get("load") or []]
    for each in models.get("drain") or []:
        place = (each.get("node"), each.get("model"))
        what = "drained, then loaded again" if place in again else "drained"
        yield shown(f"{each.get('model')} on {each.get('node')}: {what} ({each.get('why')})")
