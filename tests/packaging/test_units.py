"""The systemd units: well-formed, confined, and in agreement with the program that they run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from fakes.programs import program
from fakes.role_process import RoleProcess, write_gateway_config

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


def allowed_calls(role):
    """The system calls that the unit's filter leaves."""
    calls = members("@default")
    for value in keys_of(role)["SystemCallFilter"]:
        named = set().union(*(members(word) for word in value.removeprefix("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    return calls


def members(group):
    listed = subprocess.run(
        [program("systemd-analyze"), "syscall-filter", "--no-pager", group],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found = set()
    for line in map(str.strip, listed.splitlines()[1:]):
        if line.startswith("@"):
            found |= members(line)
        elif line and not line.startswith("#"):
            found.add(line)
    return found


def test_the_gateway_makes_no_system_call_that_its_unit_forbids(tmp_path):
    trace, config = tmp_path / "trace", write_gateway_config(tmp_path)
    command = [program("strace"), "-f", "-qq", "-o", str(trace), sys.executable, "-m", "cortex"]
    environment = {**os.environ, "STATE_DIRECTORY": str(tmp_path / "state")}
    words = ["gateway", "--config", str(config)]
    with RoleProcess([*command, *words], environment, Path.cwd()) as role:
        url = role.url_when_listening(60)
        with urllib.request.urlopen(f"{url}/health", timeout=20) as answer:
            assert answer.status == 200
        pid = int(trace.read_text().split(None, 1)[0])
        os.kill(pid, signal.SIGHUP)
        role.wait_for_line("reloaded", 20)
        os.kill(pid, signal.SIGTERM)
        assert role.wait(30) == 0
    called = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text(), re.MULTILINE))
    assert {"socket", "openat", "execve"} <= called
    # SQLite's, and only as root: its files are to belong to whom the database belongs.
    expected = {"fchown"} if os.geteuid() == 0 else set()
    assert called - allowed_calls("gateway") <= expected
