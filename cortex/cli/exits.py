"""How a command ends when it cannot do what it was asked: one line and an exit code."""

from __future__ import annotations

from typing import IO, Any

import click

OK = 0
FAILURE = 1
USAGE = 2  # click's own code for wrong flags
UNREACHABLE = 3

EPILOG = (
    "Exit codes: 0 done; 1 it failed; 2 wrong flags or configuration, or a port that is taken; "
    "3 the endpoint cannot be reached."
)


def shown(text: str) -> str:
    """*text* without what could move a cursor."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


class Failed(click.ClickException):
    """It was tried and did not work."""

    exit_code = FAILURE

    def show(self, file: IO[Any] | None = None) -> None:
        lines = "\n".join(shown(line) for line in self.message.split("\n"))
        click.echo(f"cortex: {lines}", file=file, err=file is None)


class Misconfigured(Failed):
    """Flags, files, environment or this machine do not allow it."""

    exit_code = USAGE


class Unreachable(Failed):
    """Nobody answers at the endpoint."""

    exit_code = UNREACHABLE
