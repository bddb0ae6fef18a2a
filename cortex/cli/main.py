"""The `cortex` command. Each subcommand's module is imported when it is asked for."""

from __future__ import annotations

import importlib

import click

from cortex import __version__
from cortex.cli.exits import EPILOG

COMMANDS = {
    "up": "cortex.cli.up:up",
    "gateway": "cortex.cli.roles:gateway",
    "neuron": "cortex.cli.roles:neuron",
    "status": "cortex.cli.fleet:status",
    "ps": "cortex.cli.fleet:ps",
    "top": "cortex.cli.top:top",
    "pull": "cortex.cli.pull:pull",
    "load": "cortex.cli.orders:load",
    "unload": "cortex.cli.orders:unload",
    "pin": "cortex.cli.orders:pin",
    "unpin": "cortex.cli.orders:unpin",
    "reload": "cortex.cli.reload:reload",
    "keys": "cortex.cli.accounts:keys",
    "usage": "cortex.cli.accounts:usage",
    "chat": "cortex.cli.chat:chat",
    "bench": "cortex.cli.bench.command:bench",
    "check": "cortex.cli.check:check",
    "doctor": "cortex.cli.doctor.command:doctor",
    "version": "cortex.cli.version:version",
}


class CommandGroup(click.Group):
    """Knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        command.epilog = command.epilog or EPILOG
        return command


@click.group(
    cls=CommandGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    __version__, "-V", "--version", prog_name="cortex", message="%(prog)s %(version)s"
)
def cli() -> None:
    """A handful of GPU hosts as one OpenAI- and Anthropic-compatible API.

    Start with `cortex up`; then `cortex chat`.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    cli(prog_name="cortex")
