"""packaging/release, and how versions are stamped, in a repository of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.package_files import ROOT, succeed

CHANGELOG = """\
# Changelog

Some words.

## 0.2.0, unreleased

- A gateway: 100 % of it,
  and more.
- A neuron.

## 0.1.0, 2026-01-31

- The first.
"""


class Repository:
    """A checkout with the scripts and the two files that a release writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(
            ROOT / "packaging" / "shipping", folder / "packaging/shipping", ignore=ignored
        )
        for name in ("packages", "release"):
            shutil.copy(ROOT / "packaging" / name, folder / "packaging")
        shutil.copytree(ROOT / "packaging" / "rpm", folder / "packaging/rpm")
        (folder / "cortex").mkdir()
        (folder / "cortex" / "__init__.py").write_text('"""It."""\n\n__version__ = "0.2.0"\n')
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        (folder / ".gitignore").write_text("__pycache__/\n")
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "A")
        self.git("config", "user.email", "a@example.com")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "all", "--date=2026-02-03T04:05:06Z")

    def git(self, *words: str) -> str:
        return succeed("git", "-C", self.folder, *words).strip()

    def release(self, version: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, self.folder / "packaging/release", version],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def refused(self, version: str) -> str:
        """The one line that says why *version* is not released; nothing has changed then."""
        before = self.git("rev-parse", "HEAD"), self.git("tag")
        done = self.release(version)
        assert done.returncode == 1
        assert (self.git("rev-parse", "HEAD"), self.git("tag")) == before
        (line,) = done.stderr.splitlines()
        return line

    def spec(self, output: Path) -> str:
        """The spec as it is stamped now."""
        output.mkdir()
        script = self.folder / "packaging" / "packages"
        succeed(sys.executable, script, "sources", "--output", output)
        return (output / "cortex.spec").read_text()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    folder = tmp_path / "checkout"
    folder.mkdir()
    return Repository(folder)


def test_a_release_is_a_commit_with_a_tag_and_the_next_begins(repository: Repository) -> None:
    done = repository.release("0.2.0")
    assert done.returncode == 0, done.stderr
    assert "git push" in done.stdout
    assert repository.git("status", "--porcelain") == ""
    released = repository.git("show", "v0.2.0:CHANGELOG.md")
    assert released.count("unreleased") == 0
    assert "\n## 0.2.0, 20" in released
    assert '"0.2.0"' in repository.git("show", "v0.2.0:cortex/__init__.py")
    assert repository.git("cat-file", "-t", "v0.2.0") == "tag"
    assert repository.git("rev-parse", "HEAD^") == repository.git("rev-parse", "v0.2.0^{}")
    assert '"0.2.1"' in (repository.folder / "cortex" / "__init__.py").read_text()
    text = (repository.folder / "CHANGELOG.md").read_text()
    assert text.index("## 0.2.1, unreleased") < text.index("## 0.2.0, 20")


def test_a_release_may_be_more_than_what_was_declared(repository: Repository) -> None:
    assert repository.release("1.0.0").returncode == 0
    assert '"1.0.0"' in repository.git("show", "v1.0.0:cortex/__init__.py")
    assert "## 1.0.0, 20" in repository.git("show", "v1.0.0:CHANGELOG.md")


def test_what_cannot_be_released_is_refused_in_a_line(repository: Repository) -> None:
    assert "no version" in repository.refused("0.2")
    assert "less than 0.2.0" in repository.refused("0.1.9")
    repository.git("tag", "v0.2.0")
    assert "v0.2.0 exists" in repository.refused("0.2.0")
    repository.git("tag", "v0.3.0")
    assert "not greater than 0.3.0" in repository.refused("0.2.5")
    (repository.folder / "new").write_text("")
    assert "differ from the commit" in repository.refused("0.4.0")


def test_nothing_to_release_is_refused(repository: Repository) -> None:
    path = repository.folder / "CHANGELOG.md"
    path.write_text(CHANGELOG.replace("unreleased", "2026-02-01"))
    repository.git("commit", "--quiet", "--all", "--message", "closed")
    assert "no section" in repository.refused("0.3.0")


def test_a_commit_between_releases_is_stamped_with_its_day_and_name(
    repository: Repository, tmp_path: Path
) -> None:
    sha = repository.git("rev-parse", "HEAD")
    day = repository.git("log", "-1", "--format=%cd", "--date=format-local:%Y%m%d")
    stamp = f"0.2.0~git{day}.{sha[:7]}"
    assert f"%global stamp_version {stamp}\n" in repository.spec(tmp_path / "clean")
    assert (tmp_path / "clean" / f"cortex-{stamp}.tar.gz").exists()
    (repository.folder / "new").write_text("")
    assert f"%global stamp_version {stamp}.dirty\n" in repository.spec(tmp_path / "dirty")


def test_a_release_is_stamped_with_its_version_alone_and_what_follows_sorts_behind(
    repository: Repository, tmp_path: Path
) -> None:
    assert repository.release("0.2.0").returncode == 0
    repository.git("checkout", "--quiet", "v0.2.0")
    spec = repository.spec(tmp_path / "tag")
    assert "%global stamp_version 0.2.0\n" in spec
    changes = spec.partition("%changelog\n")[2]
    assert changes.startswith("* ")
    assert "- 0.2.0-1\n- A gateway: 100 %% of it, and more.\n- A neuron.\n" in changes
    assert "* Sat Jan 31 2026 " in changes
    repository.git("checkout", "--quiet", "main")
    assert "%global stamp_version 0.2.1~git" in repository.spec(tmp_path / "after")
