"""What systemd hears, on a real socket."""

from __future__ import annotations

import os

import pytest
import trio
from fakes.systemd import FakeSystemd

from cortex.service.notify import STATUS_SECONDS, Systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    with FakeSystemd(tmp_path if request.param == "path" else None) as manager:
        yield manager


def environ(manager, **more):
    return {"NOTIFY_SOCKET": manager.address, **more}


def pings(manager):
    return sum("WATCHDOG" in message for message in manager.heard())


def test_each_state_is_a_message(manager):
    systemd = Systemd.of(environ(manager))
    systemd.ready()
    systemd.reloading()
    systemd.stopping(70.5)
    ready, reloading, stopping = manager.heard()
    assert ready == {"READY": "1"}
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert reloading["MONOTONIC_USEC"].isdigit()
    assert stopping == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "70500000", "STATUS": "draining"}


async def test_without_systemd_nothing_is_said_and_nothing_runs():
    systemd = Systemd.of({"WATCHDOG_USEC": "30000000"})
    assert systemd.watchdog is None
    systemd.ready()
    await systemd.run(lambda: "unheard")  # it returns


async def test_a_status_is_told_when_it_changes(manager, autojump_clock):
    status = ["1 of 2 nodes"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Systemd.of(environ(manager)).run, lambda: status[0])
        await trio.sleep(4 * STATUS_SECONDS)
        assert manager.heard() == [{"STATUS": "1 of 2 nodes"}]
        status[0] = "forged\nREADY=1"
        await trio.sleep(2 * STATUS_SECONDS)
        assert manager.heard() == [{"STATUS": "forged READY=1"}]
        nursery.cancel_scope.cancel()


async def test_draining_stays_the_status(manager, autojump_clock):
    systemd = Systemd.of(environ(manager))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(systemd.run, lambda: "well")
        await trio.testing.wait_all_tasks_blocked()
        systemd.stopping(1)
        manager.heard()
        await trio.sleep(4 * STATUS_SECONDS)
        assert manager.heard() == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seconds", [2, 30, 600])
async def test_no_silence_is_longer_than_half_of_what_the_watchdog_allows(
    manager, autojump_clock, seconds
):
    systemd = Systemd.of(environ(manager, WATCHDOG_USEC=str(seconds * 1_000_000)))
    assert systemd.watchdog == seconds
    async with trio.open_nursery() as nursery:
        nursery.start_soon(systemd.run, lambda: "well")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            assert pings(manager) >= 1
            await trio.sleep(seconds / 2 + 0.001)
        nursery.cancel_scope.cancel()


async def test_nothing_is_pinged_while_something_is_wrong(manager, autojump_clock, caplog):
    wrong = [None]
    systemd = Systemd.of(environ(manager, WATCHDOG_USEC="30000000"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(systemd.run, lambda: "s", lambda: wrong[0])
        await trio.sleep(31)
        assert pings(manager)
        wrong[0] = "cuda-dev-0 is stuck in a step for 301 s"
        await trio.sleep(31)
        assert not pings(manager)
        assert [
            r.cortex_fields["reason"] for r in caplog.records if r.levelname == "ERROR"
        ] == wrong
        wrong[0] = None
        await trio.sleep(31)
        assert pings(manager)
        nursery.cancel_scope.cancel()


def test_a_watchdog_of_another_process_is_not_ours(manager):
    others = environ(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid() + 1))
    assert Systemd.of(others).watchdog is None
    ours = environ(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert Systemd.of(ours).watchdog == 30


async def test_a_process_that_replaces_itself_asks_for_time_and_the_next_gives_it_back(
    manager, autojump_clock
):
    watched = environ(manager, WATCHDOG_USEC="60000000")
    Systemd.of(watched).replacing()
    (message,) = manager.heard()
    assert message["WATCHDOG"] == "1"
    assert int(message["WATCHDOG_USEC"]) >= 300_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Systemd.of(watched).run, lambda: "s")
        await trio.testing.wait_all_tasks_blocked()
        assert manager.heard()[0] == {"WATCHDOG_USEC": "60000000"}
        nursery.cancel_scope.cancel()


def test_a_manager_that_is_gone_or_takes_nothing_harms_nobody(tmp_path, caplog):
    Systemd(str(tmp_path / "nobody")).ready()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    with FakeSystemd(tmp_path) as manager:
        systemd = Systemd(manager.address)
        for _ in range(10_000):  # far more than its socket holds
            systemd.ready()
        assert len(manager.heard()) < 10_000
    assert len(caplog.records) == 2  # not one for each message


def test_a_socket_of_a_kind_that_is_not_known_is_left_alone(caplog):
    assert Systemd.of({"NOTIFY_SOCKET": "vsock:2:1"}).address is None
    assert "not known" in caplog.text
