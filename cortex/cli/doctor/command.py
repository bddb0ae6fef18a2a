"""`cortex doctor`: the command."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import click

from cortex.cli.accounts import state_option
from cortex.cli.check import kind_of
from cortex.cli.doctor import device_look, report
from cortex.cli.doctor.peer import is_url
from cortex.cli.doctor.report import FAILED, Finding
from cortex.cli.exits import FAILURE, OK, Misconfigured
from cortex.cli.fleet import json_option
from cortex.cli.roles import configured
from cortex.cli.runner import own_command
from cortex.config.loader import load_catalogue, load_gateway, load_neuron, state_directory

ROLES = ("gateway", "neuron", "all")
LOOK = "--look-at-devices"


class Host(Protocol):
    """What is looked at: a role on this machine, as it is configured."""

    def findings(self) -> Iterator[Finding]: ...


@click.command()
@click.option(
    "--config",
    "-c",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="cortex.toml or neuron.toml; told by content. Repeatable.  "
    "[env: CORTEX_CONFIG, NEURON_CONFIG]",
)
@click.option(
    "--role",
    type=click.Choice(ROLES),
    help="What this host is.  [default: what the files are for, else all that is installed]",
)
@click.option(
    "--endpoint",
    "-e",
    metavar="URL",
    help="The gateway, if not where its configuration says.",
)
@click.option("--key", metavar="KEY", help="Key of the API.  [env: CORTEX_API_KEY]")
@state_option
@json_option
@click.option(LOOK, "look", is_flag=True, hidden=True)
def doctor(
    files: tuple[Path, ...],
    role: str | None,
    endpoint: str | None,
    key: str | None,
    directory: Path | None,
    as_json: bool,
    look: bool,
) -> None:
    """Look at this host, check by check, and say what to do about what is wrong.

    Ports, clocks, disk, rights, driver and torch, compiler, memory, hub, neurons, versions,
    certificate, and one real token through each loaded model. To be run as the user of the
    service, with its files and its environment. Nothing is changed. Ends with 1 when a check
    failed.
    """
    if look:
        from cortex.neuron import host_look

        host_look.tell()
        return
    if endpoint is not None and not is_url(endpoint):
        raise Misconfigured(f"--endpoint: expected an http or https URL, got {endpoint!r}")
    key = key or os.environ.get("CORTEX_API_KEY")
    found: list[Finding] = []
    for host in hosts(files, role, endpoint, key, directory):
        for finding in host.findings():
            found.append(finding)
            if not as_json:
                report.show(finding)
    click.echo(json.dumps(report.body(found), indent=2) if as_json else report.summary(found))
    sys.exit(FAILURE if any(finding.state == FAILED for finding in found) else OK)


def hosts(
    files: tuple[Path, ...],
    role: str | None,
    endpoint: str | None,
    key: str | None,
    directory: Path | None,
) -> list[Host]:
    """What is to be looked at. Ends the command where a file is wrong."""
    from cortex.cli.doctor.roles import GatewayHost, NeuronHost

    named: dict[str, Path] = {}
    for path in files:
        kind = configured(partial(kind_of, path))
        if kind not in ("gateway", "neuron"):
            raise Misconfigured(f"{path}: is a catalogue; name the cortex.toml that uses it")
        if kind in named:
            raise Misconfigured(f"{path}: a second {kind} configuration")
        named[kind] = path
    wanted = _wanted(role, named)
    for kind in named:
        if kind not in wanted:
            raise Misconfigured(f"{named[kind]}: is no configuration of the {role} role")
    found: list[Host] = []
    if "gateway" in wanted:
        config = configured(lambda: load_gateway(named.get("gateway"), os.environ))
        catalogue = configured(lambda: load_catalogue(config))
        state = directory if directory is not None else state_directory(os.environ)
        found.append(GatewayHost(config, catalogue, state, endpoint, key))
    if "neuron" in wanted:
        neuron = configured(lambda: load_neuron(named.get("neuron"), os.environ))
        command = [*own_command(), "doctor", LOOK]
        found.append(NeuronHost(neuron, lambda: device_look.look(command)))
    return found


def _wanted(role: str | None, named: dict[str, Path]) -> set[str]:
    if role == "all":
        return {"gateway", "neuron"}
    if role is not None:
        return {role}
    environment = {"gateway": "CORTEX_CONFIG", "neuron": "NEURON_CONFIG"}
    told = set(named) | {kind for kind, name in environment.items() if os.environ.get(name)}
    if told:
        return told
    return {"gateway", "neuron"} if importlib.util.find_spec("torch") else {"gateway"}
