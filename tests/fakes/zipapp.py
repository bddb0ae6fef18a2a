"""cortex.pyz as a person gets it: built from a copy of what a build reads, and run on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("cortex", "packaging", "pyproject.toml", "shiv.spec", "README.md", "LICENSE")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def copy_inputs(folder: Path) -> None:
    """Copy to *folder* what `packaging/build` reads; git's folder is not among it."""
    ignored = shutil.ignore_patterns("__pycache__", "demo_model")
    for name in INPUTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def build(folder: Path, *options: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """Run `packaging/build` of the copy in *folder*."""
    return subprocess.run(
        [sys.executable, str(folder / "packaging" / "build"), *options],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
        umask=umask,
        check=False,
    )


def build_slim(folder: Path, *options: str, umask: int = 0o022) -> Path:
    """Copy the inputs to *folder*, build the slim archive there, and return it."""
    copy_inputs(folder)
    done = build(folder, "slim", "--commit", COMMIT, *options, umask=umask)
    assert done.returncode == 0, done.stderr
    return folder / "cortex.pyz"


def command(archive: Path, *arguments: str) -> list[str]:
    # -I -S: no package of the tests' environment may be taken for one of the archive's.
    return [sys.executable, "-I", "-S", str(archive), *arguments]


def environment(cache: Path) -> dict[str, str]:
    """This process' environment, with *cache* to unpack into and a state directory beside it."""
    own = {"SHIV_ROOT": str(cache), "STATE_DIRECTORY": f"{cache}-state"}
    return {**os.environ, **own, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def finished(archive: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of *archive* that ends by itself."""
    return subprocess.run(
        command(archive, *arguments),
        env=environment(cache),
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
