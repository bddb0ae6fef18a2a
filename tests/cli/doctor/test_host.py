"""Ports, descriptors, clocks: judged from what is really there, or from what a test says."""

from __future__ import annotations

import os
import socket

import pytest

from cortex.cli.doctor import host
from cortex.cli.doctor.peer import Heard
from cortex.cli.doctor.report import FAILED, OK, WARNING, Judge

JUDGE = Judge("gateway")


def nobody() -> str | None:
    return None


def test_a_free_port_is_ok_and_one_that_is_chosen_at_start(nobody_listens):
    assert host.port(JUDGE, "api", nobody_listens, nobody).state == OK
    assert host.port(JUDGE, "api", "127.0.0.1:0", nobody).state == OK


@pytest.fixture
def nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        yield f"127.0.0.1:{stranger.getsockname()[1]}"


def test_a_port_that_a_stranger_has_names_the_process(taken):
    finding = host.port(JUDGE, "api", taken, nobody)
    assert finding.state == FAILED
    assert f"(pid {os.getpid()})" in finding.detail
    assert finding.advice


def test_a_port_that_cortex_has_says_who(taken):
    finding = host.port(JUDGE, "api", taken, lambda: "a cortex gateway 1.0, which answers")
    assert (finding.state, "a cortex gateway 1.0" in finding.detail) == (OK, True)


def test_an_address_of_another_host_is_a_failure():
    finding = host.port(JUDGE, "api", "192.0.2.1:31313", nobody)
    assert finding.state == FAILED


def test_who_cannot_be_seen_is_nobody(tmp_path):
    assert host.owner_of(1, tmp_path) is None
    (tmp_path / "net").mkdir()
    row = "   0: 0100007F:0050 00000000:0000 0A 0:0 0:0 0 0 0 4711 1"
    (tmp_path / "net" / "tcp").write_text(f"header\n{row}\n")
    (tmp_path / "7" / "fd").mkdir(parents=True)
    (tmp_path / "7" / "fd" / "3").symlink_to("socket:[4711]")
    (tmp_path / "7" / "comm").write_text("nginx\n")
    assert host.owner_of(0x50, tmp_path) == "nginx (pid 7)"
    assert host.owner_of(0x51, tmp_path) is None


@pytest.mark.parametrize(("hard", "state"), [(-1, OK), (65_536, OK), (1024, WARNING)])
def test_few_descriptors_are_a_warning(hard, state):
    assert host.descriptors(JUDGE, hard).state == state


@pytest.mark.parametrize(
    ("skew", "state"),
    [(0.4, OK), (-4.0, OK), (9.0, WARNING), (-9.0, WARNING), (3600.0, FAILED), (-90.0, FAILED)],
)
def test_a_clock_that_is_off_is_named(skew, state):
    finding = host.clock(JUDGE, "gpu1", Heard(200, skew=skew, doubt=1.0))
    assert finding is not None
    assert finding.state == state
    if state != OK:
        assert ("ahead of" if skew > 0 else "behind") in finding.detail


def test_who_tells_no_time_is_not_judged():
    assert host.clock(JUDGE, "gpu1", Heard(200)) is None
