"""Which version a tree is: a release where it is tagged, else a step on the way to one."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from shipping.errors import PackagingError, run

VERSION_LINE = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Stamp:
    """*version* as rpm and dpkg order it, the full *commit*, and its time in seconds of UTC."""

    version: str
    commit: str
    epoch: int

    @property
    def release(self) -> bool:
        return "~" not in self.version


def stamp_from(told: list[str] | None, root: Path) -> Stamp:
    """The stamp that an option *told* as version, commit and time; else that of the checkout."""
    if told is None:
        return stamp_of(root)
    version, commit, epoch = told
    if not re.fullmatch(r"\d+\.\d+\.\d+(~git[0-9a-z.]+)?", version) or not epoch.isdigit():
        raise PackagingError(f"no stamp: {' '.join(told)}")
    return Stamp(version, commit, int(epoch))


def declared_version(root: Path) -> str:
    """The version that the tree at *root* says it is, or will be."""
    found = VERSION_LINE.search((root / "cortex" / "__init__.py").read_text())
    if found is None:
        raise PackagingError("cortex/__init__.py has no __version__")
    return found[1]


def git(root: Path, *arguments: str) -> str:
    return run(["git", "-C", str(root), *arguments]).strip()


def is_dirty(root: Path) -> bool:
    """Whether a file that git tracks, or would, differs from the commit."""
    return bool(git(root, "status", "--porcelain"))


def stamp_of(root: Path) -> Stamp:
    """The stamp of the checkout at *root*.

    `1.2.3` where HEAD carries the tag `v1.2.3`; else `1.2.3~git20260131.abcdef0`, which sorts
    before 1.2.3 and, day by day, after what came earlier; `.dirty` behind it where files differ.
    """
    version = declared_version(root)
    commit = git(root, "rev-parse", "HEAD")
    epoch = int(git(root, "log", "-1", "--format=%ct"))
    dirty = is_dirty(root)
    if dirty or f"v{version}" not in git(root, "tag", "--points-at", "HEAD").splitlines():
        day = time.strftime("%Y%m%d", time.gmtime(epoch))
        version += f"~git{day}.{commit[:7]}" + (".dirty" if dirty else "")
    return Stamp(version, commit, epoch)
