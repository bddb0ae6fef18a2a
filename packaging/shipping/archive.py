"""What a zipapp says of itself, and how the packages start it."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import sys
import tempfile
import zipapp
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipping.errors import PackagingError, run

DESCRIBE = Path(__file__).with_name("describe.py")
FACTS = re.compile(r"^BUILD = (\{.*\})$", re.MULTILINE)


@dataclass(frozen=True)
class Facts:
    """The Python (`3.11`) and the machine (`x86_64`) that an archive was built for, and which of
    shiv.spec's flavours it is."""

    python: str
    machine: str
    flavour: str


def facts_of(archive: Path) -> Facts:
    """Read what `packaging/build` wrote into *archive*."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = FACTS.search(opened.read("__main__.py").decode())
            flavour = opened.read("site-packages/cortex/flavour.txt").decode().strip()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise PackagingError(f"{archive} is no zipapp of cortex: {error}") from error
    if found is None:
        raise PackagingError(f"{archive} is no zipapp of cortex: it names no build")
    built = ast.literal_eval(found[1])
    return Facts(built["python"].removeprefix("Python "), built["machine"], flavour)


def interpreter_of(facts: Facts) -> str:
    """The first line of an installed archive: the one Python that runs it, by its full name, and
    nothing of the user's own in the way (-s no user site, -P nothing from the current folder)."""
    return f"/usr/bin/python{facts.python} -sP"


def install(archive: Path, target: Path) -> None:
    """Copy *archive* to *target* with that first line; all behind it stays as it is."""
    zipapp.create_archive(archive, target, interpreter=interpreter_of(facts_of(archive)))
    target.chmod(0o755)


def describe(archive: Path) -> dict[str, Any]:
    """The commands of *archive* with their help, and its completions: what it says itself."""
    facts = facts_of(archive)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if facts.python != here:
        raise PackagingError(
            f"{archive} is for Python {facts.python} and this is {here}: stage it with the former"
        )
    with unpack_folder(archive.parent) as folder:
        own = {"SHIV_ROOT": folder, "SHIV_INTERPRETER": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {**os.environ, **own, "HOME": folder, "COLUMNS": "80"}
        told = run([sys.executable, "-sP", str(archive.absolute()), str(DESCRIBE)], env=environment)
    described: dict[str, Any] = json.loads(told)
    return described


@contextlib.contextmanager
def unpack_folder(beside: Path) -> Iterator[str]:
    """Where archives unpack: `SHIV_ROOT`, where somebody set it so that it is done once; else a
    folder *beside*, since /tmp is often too small for torch."""
    given = os.environ.get("SHIV_ROOT")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix=".cortex-unpacked-", dir=beside) as folder:
        yield folder
