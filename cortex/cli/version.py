"""`cortex version`: what is running, without importing any of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import click

import cortex
from cortex import __version__

# The packages a bug report is asked for.
COMPONENTS = ("torch", "trio", "hypercorn", "tokenizers", "safetensors")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Say which version this is."""
    installed = {name: found for name in COMPONENTS if (found := installed_version(name))}
    commit = commit_of(Path(cortex.__file__).parent)
    if as_json:
        body = {"version": __version__, "commit": commit, "python": platform.python_version()}
        click.echo(json.dumps({**body, **installed}))
        return
    parts = [f"commit {commit[:12]}"] if commit else []
    parts.append(f"Python {platform.python_version()}")
    parts.append(f"torch {installed['torch']}" if "torch" in installed else "no torch")
    click.echo(f"cortex {__version__} ({', '.join(parts)})")


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit_of(package: Path) -> str | None:
    """The commit *package* is of: from commit.txt, which a build puts into it, else the checkout's
    own files. None when neither tells."""
    try:
        return (package / "commit.txt").read_text().strip() or None
    except OSError:
        pass
    git = package.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head or None
        branch = head.removeprefix("ref: ")
        loose = git / branch
        if loose.is_file():
            return loose.read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(f" {branch}"):
                return line.split()[0]
    except OSError:  # no checkout, or one without commits
        pass
    return None
