"""The manual and the changelogs: what is written from the program and its documents."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.package_files import ROOT, succeed
from fakes.programs import program

from cortex.cli.main import COMMANDS

STAMP = ("1.2.3~git20260131.abcdef0", "a" * 40, "1769817600")
PACKAGES = ("cortex", "cortex-neuron")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def staged(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `packaging/stage` writes of both programs."""
    folder = tmp_path_factory.mktemp("staged")
    command = [sys.executable, ROOT / "packaging" / "stage", *PACKAGES, "--family", "rpm"]
    command += ["--root", folder / "root", "--files", folder, "--zipapp", slim]
    succeed(*command, "--stamp", *STAMP)
    return folder


@pytest.fixture(scope="module")
def pages(staged: Path) -> list[Path]:
    """The pages of the manual, unpacked."""
    found = []
    for packed in sorted((staged / "root/usr/share/man").rglob("*.gz")):
        page = packed.with_suffix("")
        page.write_bytes(gzip.decompress(packed.read_bytes()))
        found.append(page)
    return found


def read(pages: list[Path], name: str) -> str:
    """A page as it is shown: in one line, without what makes it bold."""
    (page,) = (each for each in pages if each.name == name)
    shown = succeed(program("mandoc"), "-T", "ascii", page)
    return " ".join(re.sub(".\b", "", shown).split())


def test_every_command_has_a_page(pages: list[Path]) -> None:
    names = {page.name for page in pages}
    assert {f"cortex-{name}.1" for name in COMMANDS} <= names
    assert {"cortex.1", "cortex-keys-add.1"} <= names
    assert {"cortex.toml.5", "models.toml.5", "neuron.toml.5"} <= names


def test_mandoc_finds_nothing_to_warn_of(pages: list[Path]) -> None:
    assert succeed(program("mandoc"), "-T", "lint", "-W", "warning", *pages) == ""


def test_man_finds_nothing_to_warn_of(pages: list[Path]) -> None:
    command = [program("man"), "--warnings", "--encoding=UTF-8", "--local-file"]
    for page in pages:
        done = subprocess.run(
            [*command, str(page)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == "", page.name


def test_a_page_says_what_the_command_says(pages: list[Path]) -> None:
    told = read(pages, "cortex-keys-add.1")
    assert "cortex keys add [options] NAME" in told
    assert "--expires WHEN" in told
    assert "2 Wrong flags or configuration" in told
    told = read(pages, "cortex.toml.5")
    assert 'listen Type: string. Default: "127.0.0.1:31313".' in told
    assert "cortex-neuron neuron [options]" in read(pages, "cortex-neuron.1")


def test_pages_bear_the_date_and_version_of_the_stamp(pages: list[Path]) -> None:
    for page in pages:
        assert page.read_text().startswith(".Dd January 31, 2026\n"), page.name
        assert ".Os cortex 1.2.3\n" in page.read_text()
