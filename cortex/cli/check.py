"""`cortex check`: validate configuration files, show what they hold and explain it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import click

from cortex.cli import explanation
from cortex.cli.exits import OK, USAGE, Misconfigured
from cortex.config.catalogue import Catalogue
from cortex.config.errors import ConfigError
from cortex.config.gateway import GatewayConfig, NeuronNode
from cortex.config.loader import (
    load_catalogue,
    load_gateway,
    load_neuron,
    read_catalogue,
    read_toml,
)
from cortex.config.neuron import NeuronConfig

KINDS = ("gateway", "models", "neuron")
# Keys that only one of the files has.
_MARKS = {
    "gateway": {
        *("gateway", "eviction", "images", "auth", "usage", "neurons", "nodes"),
        *("models_config", "upstream"),
    },
    "models": {"models", "aliases"},
    "neuron": {"listen", "port", "default_models", "harnesses", "harness", "token", "token_file"},
}
_NAMES = {"cortex.toml": "gateway", "models.toml": "models", "neuron.toml": "neuron"}

Plan = dict[str, Any]


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--kind", type=click.Choice(KINDS), help="What the files are; told by content if not."
)
@click.option(
    "--live", is_flag=True, help="Ask the neurons of a cortex.toml, and say what they would do."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(files: tuple[Path, ...], kind: str | None, live: bool, as_json: bool) -> None:
    """Validate cortex.toml, models.toml or neuron.toml, and explain what they come to.

    The files alone are looked at, not this shell's environment. With --live the neurons are asked
    what they have, and where each model would go now; nothing is loaded. Ends with 2 when a file is
    wrong.
    """
    reports = [_report(path, kind, live) for path in files]
    if live and not any(report["kind"] == "gateway" for report in reports):
        raise Misconfigured("--live: none of the files is a cortex.toml, which names the neurons")
    if as_json:
        click.echo(json.dumps({"files": reports}, indent=2))
    else:
        for report in reports:
            _show(report)
    sys.exit(OK if all(report["ok"] for report in reports) else USAGE)


def _report(path: Path, kind: str | None, live: bool) -> Plan:
    report: Plan = {"file": str(path), "kind": kind, "ok": False}
    try:
        report["kind"] = kind = kind or kind_of(path)
        found = _read(path, kind)
    except ConfigError as error:
        return report | {"error": str(error)}
    report |= {
        "ok": True,
        "warnings": list(found.warnings),
        "plan": found.plan,
        "explanation": list(found.explanation),
    }
    if live and found.fleet is not None:
        from cortex.cli import live_plan

        report["live"] = live_plan.ask(*found.fleet)
    return report


def kind_of(path: Path) -> str:
    """Which of `KINDS` the file is, by its keys, else by its name. `ConfigError`."""
    keys = read_toml(path).keys()
    matches = [kind for kind, marks in _MARKS.items() if keys & marks]
    if len(matches) != 1:
        matches = [_NAMES[path.name]] if path.name in _NAMES else []
    if not matches:
        raise ConfigError(f"{path}: cannot tell what it is; say --kind {'|'.join(KINDS)}")
    return matches[0]


@attrs.frozen
class _Found:
    """What a file holds: its tables, what is odd about them, what they come to; and, of a
    gateway's, what `live_plan` asks."""

    plan: Plan
    warnings: Iterable[str]
    explanation: Iterable[str]
    fleet: tuple[GatewayConfig, Catalogue] | None = None


def _read(path: Path, kind: str) -> _Found:
    if kind == "models":
        catalogue = read_catalogue(path)
        explained = explanation.of_catalogue(catalogue)
        return _Found(_catalogue_plan(catalogue), catalogue.warnings, explained)
    if kind == "neuron":
        neuron = load_neuron(path, {})
        return _Found(_neuron_plan(neuron), neuron.warnings, explanation.of_neuron(neuron))
    gateway = load_gateway(path, {})
    catalogue = load_catalogue(gateway)
    return _Found(
        _gateway_plan(gateway, catalogue),
        (*gateway.warnings, *catalogue.warnings),
        explanation.of_gateway(gateway, catalogue),
        (gateway, catalogue),
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _table(instance: Any, *without: str) -> Plan:
    """The fields of *instance* that are set, secrets as "set"."""
    fields = attrs.asdict(instance, recurse=False, filter=lambda a, _: a.name not in without)
    shown = {k: _plain(v) for k, v in fields.items() if v is not None and v != ()}
    return shown | ({"token": "set"} if "token" in shown else {})


def _gateway_plan(config: GatewayConfig, catalogue: Catalogue) -> Plan:
    return {
        "gateway": _table(config.gateway),
        "eviction": _table(config.eviction),
        "images": _table(config.images),
        "auth": _table(config.auth),
        "usage": _table(config.usage),
        "neurons": [_node(node) for node in config.neurons],
        "models_config": _plain(config.models_config),
        **_catalogue_plan(catalogue),
    }


def _node(node: NeuronNode) -> Plan:
    """Of headers the names alone: a value may be a key."""
    names = {"headers": tuple(node.headers)} if node.headers else {}
    return _table(node) | names


def _catalogue_plan(catalogue: Catalogue) -> Plan:
    models = [_table(entry) for entry in catalogue.models.values()]
    return {"models": models, "aliases": catalogue.aliases}


def _neuron_plan(config: NeuronConfig) -> Plan:
    models = [_table(model) for model in config.default_models]
    return {"neuron": _table(config, "default_models", "source", "warnings"), "models": models}


def _show(report: Plan) -> None:
    if not report["ok"]:
        click.echo(f"error: {report['error']}", err=True)
        return
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{report['file']}: valid {report['kind']} configuration")
    for name, part in report["plan"].items():
        _show_part(name, part)
    _show_sentences("what this comes to", report["explanation"])
    if "live" in report:
        from cortex.cli import live_plan

        _show_sentences("what the fleet would do now", live_plan.sentences(report["live"]))


def _show_sentences(title: str, sentences: list[str]) -> None:
    click.echo(f"  {title}:")
    for sentence in sentences:
        click.echo(f"    {sentence}")


def _show_part(name: str, part: Any) -> None:
    if isinstance(part, dict):
        click.echo(f"  {name}" + ("" if part else ": none"))
        for key, value in part.items():
            click.echo(f"    {key} = {_words(value)}")
    elif isinstance(part, list):
        click.echo(f"  {name}" + ("" if part else ": none"))
        for item in part:
            click.echo(
                "    - " + ", ".join(f"{key} {_words(value)}" for key, value in item.items())
            )
    else:
        click.echo(f"  {name}: {part if part is not None else 'none'}")


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_words(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_words(item)}" for key, item in value.items()) + "}"
    return str(value)
