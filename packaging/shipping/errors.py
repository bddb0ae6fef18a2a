"""What ends a build of the packages."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


class PackagingError(Exception):
    """It cannot be built or released; the message is for a person."""


def run(
    command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run *command* and return what it printed; raise `PackagingError` with the end of it."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise PackagingError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        told = (done.stdout + done.stderr).strip()[-4000:]
        raise PackagingError(f"{' '.join(command[:4])} ... failed:\n{told}")
    return done.stdout
