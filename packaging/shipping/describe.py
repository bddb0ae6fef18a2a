"""Print cortex's commands with their help and completions, as JSON.

Run by the zipapp's own interpreter, so that what is written about a program is what it says.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from click.shell_completion import get_completion_class

from cortex import __version__
from cortex.cli.main import cli

PROGRAMS = ("cortex", "cortex-neuron")
# Named after what the command line calls itself, under whichever name it was started.
COMPLETE_VARIABLE = "_CORTEX_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


def described(command: click.Command, context: click.Context) -> dict[str, Any]:
    """What there is to say of *command*, its options and those below it."""
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Argument):
            arguments.append(parameter.make_metavar(context))
        elif record := parameter.get_help_record(context):
            options.append(record)
    below = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            inner = click.Context(child, info_name=name, parent=context)
            below.append(described(child, inner))
    return {
        "path": context.command_path,
        "summary": command.get_short_help_str(limit=100).rstrip("."),
        "help": command.help or "",
        "epilog": command.epilog or context.find_root().command.epilog or "",
        "options": options,
        "arguments": arguments,
        "commands": below,
    }


def completions() -> dict[str, dict[str, str]]:
    """For each program and shell the script that completes it."""
    found: dict[str, dict[str, str]] = {}
    for program in PROGRAMS:
        found[program] = {}
        for shell in SHELLS:
            kind = get_completion_class(shell)
            assert kind is not None
            # Formatted here: source() would look for bash itself, and its version.
            own = kind(cli, {}, program, COMPLETE_VARIABLE)
            found[program][shell] = own.source_template % own.source_vars()
    return found


def main() -> None:
    """Write the whole description."""
    context = click.Context(cli, info_name="cortex", **cli.context_settings)
    body = {
        "version": __version__,
        "program": described(cli, context),
        "completions": completions(),
    }
    json.dump(body, sys.stdout)


if __name__ == "__main__":
    main()
