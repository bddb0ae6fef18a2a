"""Writes what a package installs below a folder, as the layout says."""

from __future__ import annotations

import gzip
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipping import archive, man_pages
from shipping.changelog import debian_changelog
from shipping.errors import PackagingError
from shipping.layout import (
    DOCUMENTS,
    EXAMPLES,
    PROGRAMS,
    Entry,
    Family,
    Kind,
    completion_paths,
    entries_of,
    holds_archive,
)
from shipping.stamp import Stamp

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: cortex
Source: https://github.com/cortex-serving/cortex
{inside}
Files: *
Copyright: 2026 The cortex authors
License: GPL-3+

License: GPL-3+
 This program is free software: you can redistribute it and/or modify it under
 the terms of the GNU General Public License as published by the Free Software
 Foundation, either version 3 of the License, or (at your option) any later
 version.
 .
 This program is distributed in the hope that it will be useful, but WITHOUT
 ANY WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS
 FOR A PARTICULAR PURPOSE. See the GNU General Public License for more details.
 .
 On Debian systems the whole text is in /usr/share/common-licenses/GPL-3.
"""
INSIDE = """\
Comment: The zipapp /usr/lib/{program}/cortex.pyz also holds the Python packages
 that cortex needs, each under the licence in its folder NAME.dist-info there.
"""


@dataclass(frozen=True)
class Job:
    """One package of the tree at *tree*, for one family. *described* is what `archive.describe`
    tells of any zipapp of the tree; *zipapp* what the package holds."""

    tree: Path
    package: str
    family: Family
    stamp: Stamp
    described: dict[str, Any]
    zipapp: Path | None = None

    @property
    def bill(self) -> Path | None:
        """The list of parts that lies beside the zipapp, where there is one."""
        if self.zipapp is None:
            return None
        path = self.zipapp.with_name(self.zipapp.name + ".cdx.json")
        return path if path.exists() else None


def documents_of(tree: Path, package: str) -> list[str]:
    """The files of *tree* that *package* brings as documentation."""
    names = [name for name in DOCUMENTS if (tree / name).exists()]
    if package not in PROGRAMS:
        return ["CHANGELOG.md"]
    folders = ["docs", *(f"packaging/{name}" for name in EXAMPLES[package])]
    if package != "cortex":  # which has the rest of it
        return names
    for folder in folders:
        files = (path for path in (tree / folder).rglob("*") if path.is_file())
        names += sorted(path.relative_to(tree).as_posix() for path in files)
    # What writes the dashboards stays in the tree.
    return [name for name in names if not name.endswith((".py", ".pyc"))]


def pages_of(job: Job) -> dict[str, str]:
    """The manual's pages in the package, by file name."""
    if job.package not in PROGRAMS:
        return {}
    program, reference = job.described["program"], job.tree / "docs" / "configuration.md"
    pages = man_pages.command_pages(job.stamp, program) if job.package == "cortex" else {}
    for name in PROGRAMS[job.package].pages:
        if name.endswith(".5"):
            text = man_pages.file_page(job.stamp, name[:-2], reference.read_text())
        else:
            text = man_pages.text_of(man_pages.neuron_page(job.stamp, program))
        pages[name] = text
    return pages


def contents_of(job: Job, pages: dict[str, str]) -> dict[str, bytes]:
    """What is written and not copied, by its installed path."""
    found = {f"/usr/share/man/man{n[-1]}/{n}.gz": packed(t) for n, t in pages.items()}
    if job.package in PROGRAMS:
        scripts = job.described["completions"][job.package]
        for shell, path in completion_paths(job.package, job.family).items():
            found[path] = scripts[shell].strip().encode() + b"\n"
    if job.family == "deb":
        folder, text = f"/usr/share/doc/{job.package}", (job.tree / "CHANGELOG.md").read_text()
        changes = debian_changelog(text, job.stamp, job.package)
        found[f"{folder}/changelog.Debian.gz"] = packed(changes)
        found[f"{folder}/changelog.gz"] = packed(text)
        program = "cortex" if job.package == "cortex" else "cortex-neuron"
        inside = INSIDE.format(program=program) if holds_archive(job.package) else ""
        found[f"{folder}/copyright"] = COPYRIGHT.format(inside=inside).encode()
    if job.bill is not None:
        found[f"/usr/share/doc/{job.package}/cortex.pyz.cdx.json"] = job.bill.read_bytes()
    return found


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), 9, mtime=0)


def stage(job: Job, root: Path) -> list[Entry]:
    """Write the package below *root*, which is made, and return what was written.

    Every file has the stamp's time; owners are left to the packager, which the entries tell.
    """
    if holds_archive(job.package) and job.zipapp is None:
        raise PackagingError(f"{job.package} needs a zipapp")
    pages = pages_of(job)
    contents = contents_of(job, pages)
    documents = documents_of(job.tree, job.package)
    entries = entries_of(
        job.package, job.family, sorted(pages), documents, bill=job.bill is not None
    )
    for entry in entries:
        target = root / entry.path.lstrip("/")
        make_folders(target.parent)
        if entry.kind is Kind.DIRECTORY:
            make_folders(target)
            continue
        if entry.link:
            target.symlink_to(entry.link)
            continue
        if entry.path in contents:
            target.write_bytes(contents[entry.path])
        elif entry.source:
            shutil.copyfile(job.tree / entry.source, target)
        else:
            assert job.zipapp is not None
            archive.install(job.zipapp, target)
        target.chmod(entry.mode)
    for path in (*root.rglob("*"), root):
        os.utime(path, (job.stamp.epoch, job.stamp.epoch), follow_symlinks=False)
    return entries


def make_folders(folder: Path) -> None:
    """Make *folder* and what is above it, readable by all, whatever the umask."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir()
        each.chmod(0o755)


def rpm_files(entries: list[Entry]) -> str:
    """The lines that rpm's `%files -f` reads."""
    marks = {Kind.CONFIG: "%config(noreplace) ", Kind.DOC: "%doc ", Kind.LICENCE: "%license "}
    lines = []
    for entry in entries:
        attributes = f"%attr({entry.mode:04o}, root, {entry.group}) "
        if entry.link:
            lines.append(entry.path)
        elif entry.kind is Kind.DIRECTORY:
            lines.append(f"%dir {attributes}{entry.path}")
        else:
            lines.append(f"{attributes}{marks.get(entry.kind, '')}{entry.path}")
    return "\n".join(lines) + "\n"
