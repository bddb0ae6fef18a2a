"""The systemd units: well-formed, confined, and in agreement with the program that they run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from fakes.programs import program

from cortex.cli.main import cli
from cortex.cli.roles import WEDGED_SECONDS
from cortex.config.gateway import GatewayConfig
from cortex.config.neuron import NeuronConfig

FOLDER = Path(__file__).parents[2] / "packaging" / "systemd"
SYSTEM_UNITS = Path("/usr/lib/systemd/system")
ROLES = ("gateway", "neuron")
# What they start with, besides systemd's own.
PROGRAMS = ("usr/bin/cortex", "usr/bin/cortex-neuron", "bin/kill")


def unit_of(role: str) -> Path:
    return FOLDER / f"cortex-{role}.service"


def keys_of(role: str) -> dict[str, list[str]]:
    """Every key of the unit with all its values, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit_of(role).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found[key].append(value)
    return found


@pytest.fixture(scope="module")
def system_root(tmp_path_factory):
    """A file tree with systemd's units, ours, and programs where ours name them."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(SYSTEM_UNITS, root / "usr/lib/systemd/system", symlinks=True)
    for name in PROGRAMS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", encoding="utf-8")
        path.chmod(0o755)
    ours = root / "etc/systemd/system"
    ours.mkdir(parents=True)
    for role in ROLES:
        shutil.copy(unit_of(role), ours)
    return root


def verify(root, unit):
    command = [program("systemd-analyze"), "verify", f"--root={root}", "--man=no", unit]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("role", ROLES)
def test_systemd_understands_every_line(system_root, role):
    done = verify(system_root, unit_of(role).name)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_say_what_it_does_not_understand(system_root):
    wrong = system_root / "etc/systemd/system/wrong.service"
    wrong.write_text(
        unit_of("gateway").read_text(encoding="utf-8").replace("ProtectHome=", "ProtectHouse="),
        encoding="utf-8",
    )
    assert "ProtectHouse" in verify(system_root, wrong.name).stderr


@pytest.mark.parametrize(("role", "at_most"), [("gateway", 1.5), ("neuron", 2.0)])
def test_the_exposure_stays_low(role, at_most):
    done = subprocess.run(
        [
            program("systemd-analyze"),
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={at_most * 10:.0f}",
            str(unit_of(role)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    level = re.search(r"Overall exposure level .*: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level.group(1)) <= at_most
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("role", "drain"),
    [("gateway", GatewayConfig().gateway.drain_seconds), ("neuron", NeuronConfig().drain_seconds)],
)
def test_it_is_not_killed_within_its_drain(role, drain):
    assert float(keys_of(role)["TimeoutStopSec"][-1]) > drain + WEDGED_SECONDS


@pytest.mark.parametrize("role", ROLES)
def test_it_starts_a_command_that_there_is(role):
    (start,) = keys_of(role)["ExecStart"]
    path, command, *arguments = start.split()
    assert path.startswith("/usr/bin/cortex")
    assert command == role
    options = {word for parameter in cli.get_command(None, role).params for word in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= options


@pytest.mark.parametrize("role", ROLES)
def test_what_it_writes_lies_in_its_own_directories(role):
    keys = keys_of(role)
    own = {f"%S/{keys['StateDirectory'][0]}", f"%C/{keys['CacheDirectory'][0]}"}
    for setting in keys["Environment"]:
        _, _, path = setting.partition("=")
        assert any(path == each or path.startswith(f"{each}/") for each in own), setting


@pytest.mark.parametrize("role", ROLES)
def test_it_notifies(role):
    keys = keys_of(role)
    assert keys["Type"] == ["notify"]
    assert keys["NotifyAccess"] == ["main"]  # an exec of itself keeps the process id
    assert "AF_UNIX" in keys["RestrictAddressFamilies"][0].split()
    assert float(keys["WatchdogSec"][0]) >= 30
