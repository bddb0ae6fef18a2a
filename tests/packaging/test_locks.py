"""packaging/locks: whole, of the versions in the constraints, and with hashes for every package."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "packaging" / "locks"
UNLOCKED = {"torch", "triton"}
# The files that are installed together: what a gateway needs, a slim archive, a neuron, the tests.
SETS = {
    "gateway": ("base",),
    "slim": ("base", "neuron"),
    "neuron": ("base", "neuron", "torch"),
    "test": ("base", "neuron", "torch", "test"),
}


def locked(*names: str) -> dict[str, Requirement]:
    """The requirements of the locks called *names*, by package."""
    texts = [re.sub(r" \\\n.*", "", (LOCKS / f"{name}.txt").read_text()) for name in names]
    lines = [line for text in texts for line in text.splitlines()]
    wanted = [Requirement(line) for line in lines if re.match(r"[a-z]", line)]
    assert len({w.name for w in wanted}) == len(wanted), "a package is in two files"
    return {w.name: w for w in wanted}


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "extras"),
    [("gateway", ()), ("slim", ("neuron",)), ("neuron", ("neuron",)), ("test", ("neuron", "test"))],
)
def test_what_pyproject_asks_for_is_locked_at_a_version_that_it_allows(
    name: str, extras: tuple[str, ...]
) -> None:
    found = locked(*SETS[name])
    for wanted in declared(*extras):
        if wanted.name not in UNLOCKED:
            (pin,) = found[canonicalize_name(wanted.name)].specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), wanted


@pytest.mark.parametrize("name", sorted(SETS))
def test_what_the_locked_packages_need_is_locked_with_them(name: str) -> None:
    found = locked(*SETS[name])
    missing = {}
    for package in found:
        try:
            needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system than this one
        for line in needs:
            wanted = Requirement(line)
            here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if here and canonicalize_name(wanted.name) not in {*found, *UNLOCKED}:
                missing[package] = line
    assert not missing


@pytest.mark.parametrize("lock", ["base", "neuron", "torch", "test", "tools"])
def test_every_locked_package_is_pinned_alike_and_has_hashes(lock: str) -> None:
    text = (ROOT / "packaging" / "constraints.txt").read_text()
    pins = dict(re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE))
    for block in re.split(r"^(?=[a-z])", (LOCKS / f"{lock}.txt").read_text(), flags=re.M)[1:]:
        name, version = block.split()[0].split("==")
        assert pins[name] == version
        assert re.search(r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$", block, re.MULTILINE)


def test_every_pin_is_locked_or_torch() -> None:
    text = (ROOT / "packaging" / "constraints.txt").read_text()
    pins = set(re.findall(r"^(\S+)==", text, re.MULTILINE))
    assert pins - {*locked(*SETS["test"]), *locked("tools")} == {"torch"}


def test_the_builds_of_torch_are_recorded_for_the_pinned_version() -> None:
    text = (LOCKS / "torch-builds.txt").read_text()
    pin = re.search(r"^torch==\S+$", (ROOT / "packaging/constraints.txt").read_text(), re.M)
    assert pin is not None
    assert f"\n{pin[0]} \\\n" in text
    # What is locked elsewhere is not of torch.
    names = set(re.findall(r"^(\S+)==", text, re.MULTILINE))
    assert not names & set(locked(*SETS["test"]))
