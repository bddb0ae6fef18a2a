"""A release: the version and the date where they are written, a commit, and its tag."""

from __future__ import annotations

import re
import time
from pathlib import Path

from shipping.changelog import HEADING, UNRELEASED, sections_of
from shipping.errors import PackagingError
from shipping.stamp import VERSION_LINE, declared_version, git, is_dirty

FORM = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def numbers_of(version: str) -> tuple[int, ...]:
    found = FORM.fullmatch(version)
    if found is None:
        raise PackagingError(f"{version} is no version like 1.2.3")
    return tuple(int(part) for part in found.groups())


def check(tree: Path, version: str) -> None:
    """Refuse what cannot be released from the checkout *tree* as *version*."""
    wanted = numbers_of(version)
    if is_dirty(tree):
        raise PackagingError("files differ from the commit: commit or stash them")
    tags = git(tree, "tag", "--list", "v*").split()
    if f"v{version}" in tags:
        raise PackagingError(f"the tag v{version} exists")
    released = [numbers_of(tag[1:]) for tag in tags if FORM.fullmatch(tag[1:])]
    if released and wanted <= max(released):
        latest = ".".join(map(str, max(released)))
        raise PackagingError(f"{version} is not greater than {latest}, which is released")
    if wanted < numbers_of(declared_version(tree)):
        raise PackagingError(f"{version} is less than {declared_version(tree)}, which is declared")
    sections = sections_of((tree / "CHANGELOG.md").read_text())
    if [section.date for section in sections].count(UNRELEASED) != 1:
        raise PackagingError("CHANGELOG.md has no section that is unreleased, or several")
    if sections[0].date != UNRELEASED or not sections[0].items:
        raise PackagingError("CHANGELOG.md does not begin with what is released now")


def write_version(tree: Path, version: str) -> None:
    path = tree / "cortex" / "__init__.py"
    path.write_text(VERSION_LINE.sub(f'__version__ = "{version}"', path.read_text()))


def close_section(tree: Path, version: str, date: str) -> None:
    """Give the section that is unreleased its version and *date*."""
    path = tree / "CHANGELOG.md"
    path.write_text(HEADING.sub(f"## {version}, {date}", path.read_text(), count=1))


def open_section(tree: Path, version: str) -> None:
    """Begin the section of *version* above the others."""
    path = tree / "CHANGELOG.md"
    text = path.read_text()
    first = HEADING.search(text)
    assert first is not None
    heading = f"## {version}, {UNRELEASED}\n\n"
    path.write_text(text[: first.start()] + heading + text[first.start() :])


def commit(tree: Path, subject: str) -> None:
    git(tree, "commit", "--quiet", "--message", subject, "cortex/__init__.py", "CHANGELOG.md")


def release(tree: Path, version: str, date: str | None = None) -> str:
    """Commit and tag *version*, then begin the next, and return that. Nothing is pushed.

    The next is declared at once: what is built from later commits must sort behind the release.
    """
    check(tree, version)
    write_version(tree, version)
    close_section(tree, version, date or time.strftime("%Y-%m-%d", time.gmtime()))
    commit(tree, f"release: cortex {version}")
    git(tree, "tag", "--annotate", "--message", f"cortex {version}", f"v{version}")
    major, minor, patch = numbers_of(version)
    following = f"{major}.{minor}.{patch + 1}"
    write_version(tree, following)
    open_section(tree, following)
    commit(tree, f"release: begin {following}")
    return following
