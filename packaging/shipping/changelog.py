"""CHANGELOG.md, and what rpm and dpkg want of it."""

from __future__ import annotations

import calendar
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass

from shipping.errors import PackagingError
from shipping.stamp import Stamp

UNRELEASED = "unreleased"
HEADING = re.compile(r"^## (\d+\.\d+\.\d+), (unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)
# Who answers for the packages; a package must name somebody.
MAINTAINER = "The cortex maintainers <cortex-serving@users.noreply.github.com>"


@dataclass(frozen=True)
class Section:
    """What changed in *version*; *date* is `2026-01-31` or `unreleased`."""

    version: str
    date: str
    items: tuple[str, ...]


def sections_of(text: str) -> list[Section]:
    """The sections of CHANGELOG.md, newest first."""
    parts = HEADING.split(text)[1:]
    found = []
    for version, date, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        items = re.findall(r"^- (.*(?:\n  .*)*)", body, re.MULTILINE)
        found.append(Section(version, date, tuple(" ".join(item.split()) for item in items)))
    if not found:
        raise PackagingError("CHANGELOG.md has no section")
    return found


def entries_of(text: str, stamp: Stamp) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Version, time and items of each entry of a package's own changelog: what it is made from,
    then what was released before it."""
    if not stamp.release:
        yield stamp.version, stamp.epoch, (f"Made from commit {stamp.commit}.",)
    for section in sections_of(text):
        if section.date == UNRELEASED:
            continue
        day = calendar.timegm(time.strptime(section.date, "%Y-%m-%d"))
        # The newest is what the package is: its time is the commit's.
        own = stamp.release and section.version == stamp.version
        yield section.version, stamp.epoch if own else day, section.items


def rpm_changelog(text: str, stamp: Stamp) -> str:
    """The lines below %changelog."""
    found = []
    for version, epoch, items in entries_of(text, stamp):
        day = time.strftime("%a %b %d %Y", time.gmtime(epoch))
        found.append(f"* {day} {MAINTAINER} - {version}-1")
        found += [wrapped(item, "- ", "  ").replace("%", "%%") for item in items]
        found.append("")
    return "\n".join(found)


def debian_changelog(text: str, stamp: Stamp, package: str) -> str:
    """The file that Debian calls changelog.Debian."""
    found = []
    for version, epoch, items in entries_of(text, stamp):
        moment = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(epoch))
        found.append(f"{package} ({version}-1) unstable; urgency=medium\n")
        found += [wrapped(item, "  * ", "    ") for item in items]
        found.append(f"\n -- {MAINTAINER}  {moment}\n")
    return "\n".join(found)


def wrapped(item: str, first: str, then: str) -> str:
    return textwrap.fill(
        item, 78, initial_indent=first, subsequent_indent=then, break_long_words=False
    )
