"""Packages as packaging/packages makes them, and what the tests ask of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from fakes.programs import program

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = {"rpm": "rpmbuild", "srpm": "rpmbuild", "deb": "dpkg-deb"}


def succeed(*command: str | Path, folder: Path | None = None, timeout: float = 600) -> str:
    """Run a command and return what it printed, both streams together."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(output: Path, kind: str, *options: str | Path) -> list[Path]:
    """Build packages into *output* and return their files."""
    if kind in TOOLS:
        program(TOOLS[kind])
    script = ROOT / "packaging" / "packages"
    told = succeed(sys.executable, script, kind, "--output", output, *options)
    return [Path(line) for line in told.splitlines() if line.startswith(os.fspath(output))]


def digest(path: Path) -> str:
    """The SHA-256 of a file: where two differ, that says so at once, and no comparison of them."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack_rpm(package: Path, target: Path) -> None:
    """Write the payload of *package* below *target*."""
    rpm2cpio, cpio = program("rpm2cpio"), program("cpio")
    target.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([rpm2cpio, package], stdout=subprocess.PIPE) as payload:
        subprocess.run(
            [cpio, "--extract", "--make-directories", "--quiet"],
            stdin=payload.stdout,
            cwd=target,
            check=True,
        )
    assert payload.returncode == 0
