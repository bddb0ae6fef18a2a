"""What each package installs, and where: the one description that rpm and deb packages share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Literal

Family = Literal["rpm", "deb"]

FLAVOURS = ("cpu", "cuda")
PACKAGES = ("cortex", "cortex-neuron", *(f"cortex-neuron-{flavour}" for flavour in FLAVOURS))


class Kind(Enum):
    """How a packager treats a path."""

    FILE = "file"
    CONFIG = "config"  # what was edited stays at an upgrade
    DOC = "doc"
    LICENCE = "licence"
    DIRECTORY = "directory"


@dataclass(frozen=True)
class Entry:
    """A path below `/` that a package owns. A *link* is a symbolic one, to that target; *source*
    is a file of the tree, else `stage` writes what belongs there."""

    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    group: str = "root"
    source: str = ""
    link: str = ""


@dataclass(frozen=True)
class Program:
    """What a command of its own brings along: user, unit, configuration, firewall."""

    name: str
    unit: str
    configs: tuple[str, ...]
    services: tuple[str, ...]
    pages: tuple[str, ...]  # beside those of the commands


PROGRAMS = {
    "cortex": Program(
        "cortex",
        "cortex-gateway.service",
        ("cortex.toml", "models.toml"),
        ("cortex", "cortex-metrics"),
        ("cortex.toml.5", "models.toml.5"),
    ),
    "cortex-neuron": Program(
        "cortex-neuron",
        "cortex-neuron.service",
        ("neuron.toml",),
        ("cortex-neuron",),
        ("cortex-neuron.1", "neuron.toml.5"),
    ),
}
DOCUMENTS = ("README.md", "CHANGELOG.md", "SECURITY.md")
# Folders of packaging/ whose files are examples for the host's administrator.
EXAMPLES = {
    "cortex": ("config/examples", "monitoring", "proxies"),
    "cortex-neuron": (),
}


def program_of(package: str) -> str:
    """The command that *package* belongs to: cortex or cortex-neuron."""
    return "cortex" if package == "cortex" else "cortex-neuron"


def holds_archive(package: str) -> bool:
    """Whether the zipapp is in *package*: a neuron's is in the package of its flavour."""
    return package != "cortex-neuron"


def completion_paths(program: str, family: Family) -> dict[str, str]:
    """Where each shell looks for what completes *program*."""
    zsh = "vendor-completions" if family == "deb" else "site-functions"
    return {
        "bash": f"/usr/share/bash-completion/completions/{program}",
        "zsh": f"/usr/share/zsh/{zsh}/_{program}",
        "fish": f"/usr/share/fish/vendor_completions.d/{program}.fish",
    }


def archive_entries(package: str) -> Iterator[Entry]:
    program = program_of(package)
    yield Entry(f"/usr/lib/{program}", Kind.DIRECTORY, 0o755)
    yield Entry(f"/usr/lib/{program}/cortex.pyz", mode=0o755)
    yield Entry(f"/usr/bin/{program}", link=f"../lib/{program}/cortex.pyz")


def program_entries(program: Program, family: Family) -> Iterator[Entry]:
    """What is the same for every flavour of *program*."""
    name = program.name
    yield Entry("/etc/cortex", Kind.DIRECTORY, 0o755)
    for config in program.configs:  # a token may stand in them
        source = f"packaging/config/{config}"
        yield Entry(f"/etc/cortex/{config}", Kind.CONFIG, 0o640, group=name, source=source)
    units = "/usr/lib/systemd/system"
    yield Entry(f"{units}/{program.unit}", source=f"packaging/systemd/{program.unit}")
    for folder in ("sysusers", "tmpfiles"):
        source = f"packaging/{folder}/{name}.conf"
        yield Entry(f"/usr/lib/{folder}.d/{name}.conf", source=source)
    for service in program.services:
        source = f"packaging/firewalld/{service}.xml"
        yield Entry(f"/usr/lib/firewalld/services/{service}.xml", source=source)
    for path in completion_paths(name, family).values():
        yield Entry(path)


def document_entries(package: str, family: Family, documents: list[str]) -> Iterator[Entry]:
    """The licence, and *documents*: files of the tree, by their path in it."""
    folder = f"/usr/share/doc/{package}"
    yield Entry(folder, Kind.DIRECTORY, 0o755)
    if family == "deb":  # which says both, the holder's names too
        yield Entry(f"{folder}/copyright", Kind.DOC)
        yield Entry(f"{folder}/changelog.Debian.gz", Kind.DOC)
    else:
        yield Entry(f"/usr/share/licenses/{package}", Kind.DIRECTORY, 0o755)
        yield Entry(f"/usr/share/licenses/{package}/LICENSE", Kind.LICENCE, source="LICENSE")
    folders = set()
    for source in documents:
        place = PurePosixPath(source.replace("packaging/config/examples/", "packaging/", 1))
        inside = place.relative_to("packaging") if place.parts[0] == "packaging" else place
        target = f"examples/{inside}" if place.parts[0] == "packaging" else str(inside)
        if source == "CHANGELOG.md" and family == "deb":
            target = "changelog.gz"  # its name there
        parents = PurePosixPath(target).parents
        folders |= {str(parent) for parent in parents if str(parent) != "."}
        yield Entry(f"{folder}/{target}", Kind.DOC, source=source)
    for each in sorted(folders):
        yield Entry(f"{folder}/{each}", Kind.DIRECTORY, 0o755)


def entries_of(
    package: str, family: Family, pages: list[str], documents: list[str], bill: bool
) -> list[Entry]:
    """Everything in *package*, by path; *bill*: whether a list of the archive's parts lies beside
    it."""
    found = list(document_entries(package, family, documents))
    if holds_archive(package):
        found += archive_entries(package)
        if bill:
            found.append(Entry(f"/usr/share/doc/{package}/cortex.pyz.cdx.json", Kind.DOC))
    if package in PROGRAMS:
        found += program_entries(PROGRAMS[package], family)
        for page in pages:
            found.append(Entry(f"/usr/share/man/man{page[-1]}/{page}.gz", Kind.DOC))
    return sorted(found, key=lambda entry: entry.path)
