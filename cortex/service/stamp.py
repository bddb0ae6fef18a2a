"""Which build runs here: said by two files that packaging/build puts into the package, else by the
checkout that it lies in."""

from __future__ import annotations

import functools
from pathlib import Path

import attrs

import cortex

PACKAGE = Path(cortex.__file__).parent
COMMIT_FILE = "commit.txt"  # the commit, `-dirty` behind it where the tree had changes
FLAVOUR_FILE = "flavour.txt"  # a flavour of shiv.spec
DIRTY = "-dirty"
CHECKOUT = "checkout"
INSTALLED = "installed"  # a wheel that somebody built without packaging/build


@attrs.frozen
class Stamp:
    """``commit`` and ``dirty`` are None where nothing tells."""

    flavour: str
    commit: str | None = None
    dirty: bool | None = None

    def short(self) -> str | None:
        """The commit as a person reads it."""
        return None if self.commit is None else self.commit[:12] + (DIRTY if self.dirty else "")


def read(package: Path = PACKAGE) -> Stamp:
    """The stamp of *package*, from files alone; whether a checkout has changes is not among it."""
    flavour = _text(package / FLAVOUR_FILE)
    built = _text(package / COMMIT_FILE)
    if flavour is not None or built is not None:
        commit = None if built is None else built.removesuffix(DIRTY)
        dirty = None if built is None else built.endswith(DIRTY)
        return Stamp(flavour or INSTALLED, commit, dirty)
    if (package.parent / "pyproject.toml").is_file():
        return Stamp(CHECKOUT, _head(package.parent / ".git"))
    return Stamp(INSTALLED)


@functools.cache
def running() -> Stamp:
    """The stamp of this process, read once: a checkout may move on while its code runs."""
    return read()


def _head(git: Path) -> str | None:
    """The commit that the checkout of the folder *git* is at."""
    git = _followed(git, "gitdir: ")
    common = git / "commondir"  # a worktree has its branches with those of the main one
    shared = git / (_text(common) or ".")
    head = _text(git / "HEAD")
    if head is None or not head.startswith("ref: "):
        return head
    branch = head.removeprefix("ref: ")
    loose = _text(shared / branch)
    if loose is not None:
        return loose
    for line in (_text(shared / "packed-refs") or "").splitlines():
        if line.endswith(f" {branch}"):
            return line.split()[0]
    return None


def _followed(git: Path, prefix: str) -> Path:
    """A worktree's `.git` is a file that names the folder."""
    text = _text(git)
    return git.parent / text.removeprefix(prefix) if text and text.startswith(prefix) else git


def _text(path: Path) -> str | None:
    """What *path* says, or None for nothing."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
