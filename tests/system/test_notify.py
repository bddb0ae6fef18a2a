"""Both roles as systemd starts them: what it hears of their lives."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request

import pytest
from fakes.role_process import RoleProcess, write_gateway_config
from fakes.systemd import FakeSystemd

STARTING, BOUND = 60.0, 30.0


@pytest.fixture
def manager(tmp_path):
    with FakeSystemd(tmp_path) as manager:
        yield manager


def start(manager, folder, *words):
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "20000000",
        "STATE_DIRECTORY": str(folder / "state"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return RoleProcess([sys.executable, "-m", "cortex", *words], environment, folder.cwd())


def test_a_gateway_is_ready_reloads_and_stops(manager, tmp_path):
    config = write_gateway_config(tmp_path)
    with start(manager, tmp_path, "gateway", "--config", str(config)) as role:
        assert manager.wait_for("STATUS", STARTING)["STATUS"].startswith("0 of 1 nodes serve")
        assert manager.wait_for("READY", STARTING) == {"READY": "1"}
        role.wait_for_line("listening", BOUND)
        os.kill(role.pid, signal.SIGHUP)
        assert "MONOTONIC_USEC" in manager.wait_for("RELOADING", BOUND)
        assert manager.wait_for("READY", BOUND) == {"READY": "1"}
        assert manager.wait_for("WATCHDOG", BOUND) == {"WATCHDOG": "1"}
        assert role.terminate(BOUND) == 0
        told = manager.wait_for("STOPPING", BOUND)
        assert int(told["EXTEND_TIMEOUT_USEC"]) > 1_000_000  # its drain_seconds


def test_a_neuron_is_ready_again_after_it_has_replaced_itself(manager, tmp_path):
    with start(manager, tmp_path, "neuron", "--listen", "127.0.0.1:0") as role:
        assert manager.wait_for("WATCHDOG_USEC", STARTING) == {"WATCHDOG_USEC": "20000000"}
        assert manager.wait_for("READY", STARTING) == {"READY": "1"}
        url = role.url_when_listening(BOUND)
        order = urllib.request.Request(f"{url}/restart", b"{}", method="POST")
        with urllib.request.urlopen(order, timeout=BOUND):
            pass
        # Nobody pings until the new program has asked its devices: it has said so.
        assert int(manager.wait_for("WATCHDOG_USEC", BOUND)["WATCHDOG_USEC"]) >= 300_000_000
        assert manager.wait_for("WATCHDOG_USEC", STARTING) == {"WATCHDOG_USEC": "20000000"}
        assert manager.wait_for("READY", STARTING) == {"READY": "1"}
        assert role.url_when_listening(BOUND) == url
        assert role.terminate(BOUND) == 0
        assert int(manager.wait_for("STOPPING", BOUND)["EXTEND_TIMEOUT_USEC"]) > 50_000_000
