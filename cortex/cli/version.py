"""`cortex version`: what is running, without importing any of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import attrs
import click

from cortex import __version__
from cortex.service import stamp

GIT_SECONDS = 5.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Say which version this is, of which build, on which Python, with which packages."""
    build = looked_at(stamp.running())
    if as_json:
        click.echo(json.dumps(facts(build)))
        return
    commit = build.short()
    torch = installed_version("torch")
    parts = [f"commit {commit}"] if commit else []
    parts.append(build.flavour)
    parts.append(f"Python {platform.python_version()}")
    parts.append(f"torch {torch}" if torch else "no torch")
    click.echo(f"cortex {__version__} ({', '.join(parts)})")


def facts(build: stamp.Stamp) -> dict[str, Any]:
    """What a bug report is asked for."""
    return {
        "version": __version__,
        "commit": build.commit,
        "dirty": build.dirty,
        "flavour": build.flavour,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "torch": torch_build(),
        "packages": {name: installed_version(name) for name in dependencies()},
    }


def looked_at(build: stamp.Stamp) -> stamp.Stamp:
    """*build* with whether its checkout has changes, where git can tell within `GIT_SECONDS`."""
    if build.flavour != stamp.CHECKOUT or build.commit is None:
        return build
    command = ["git", "status", "--porcelain", "--", "cortex", "pyproject.toml", "packaging"]
    try:
        done = subprocess.run(
            command,
            cwd=stamp.PACKAGE.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return build
    return attrs.evolve(build, dirty=bool(done.stdout.strip()))


def dependencies() -> list[str]:
    """The packages that cortex asks for, in order: said by its metadata, or by its checkout's."""
    try:
        found = importlib.metadata.requires("cortex") or []
        extras = [line for line in found if "extra ==" not in line or '"neuron"' in line]
    except importlib.metadata.PackageNotFoundError:
        extras = declared(stamp.PACKAGE.parent / "pyproject.toml")
    return sorted({re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in extras} | {"triton"})


def declared(pyproject: Path) -> list[str]:
    """The requirements in *pyproject* of a gateway and a neuron."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    except OSError:
        return []
    return [*project["dependencies"], *project["optional-dependencies"]["neuron"]]


def torch_build() -> dict[str, str | None] | None:
    """torch's version and the CUDA or HIP it is built for, from its files: it takes seconds to
    import. None without torch."""
    specification = importlib.util.find_spec("torch")
    if specification is None or specification.origin is None:
        return None
    try:
        text = (Path(specification.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    said = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *'([^'\n]*)'", text, re.MULTILINE))
    found = installed_version("torch")
    return {"version": found, "cuda": said.get("cuda"), "hip": said.get("hip")}


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
