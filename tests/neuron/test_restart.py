"""A faulted process replaces itself. Executing and leaving are recorded here, but for one test
that lets a real process do it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
import trio

from cortex.neuron import resident_file, restart
from cortex.neuron.loop_guard import LoopGuard
from cortex.neuron.resident_file import Legacy
from cortex.neuron.restart import LISTEN_FD, Restarter, inherited_listener
from cortex.wire.neuron import LoadRequest

REQUESTS = (LoadRequest("a"), LoadRequest("b", context=9))


class Ended(BaseException):
    """The process would have ended here."""


@attrs.define(eq=False)
class Exits:
    """What the restarter did to the process."""

    executed: list[tuple[str, list[str], dict[str, str]]] = attrs.field(factory=list)
    left: list[int] = attrs.field(factory=list)
    armed: list[float] = attrs.field(factory=list)
    error: OSError | None = None

    def execute(self, path: str, arguments: list[str], environ: dict[str, str]) -> NoReturn:
        self.executed.append((path, arguments, environ))
        if self.error is not None:
            raise self.error
        raise Ended

    def leave(self, code: int) -> NoReturn:
        self.left.append(code)
        raise Ended


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def restarter(exits: Exits, state: Path, listener: socket.socket, now: float = 1e6) -> Restarter:
    return Restarter(
        state,
        lambda: REQUESTS,
        listener,
        {"KEPT": "yes"},
        exits.execute,
        exits.leave,
        exits.armed.append,
        lambda: now,
    )


async def ends(one: Restarter) -> None:
    with pytest.raises(Ended):
        await one.run()


async def test_a_fault_leaves_a_record_and_executes_the_same_command(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    one = restarter(exits, tmp_path, listener)
    assert not one.faulted
    one.fault(0, "illegal address")
    one.fault(1, "another")  # one is enough
    assert one.faulted
    began = trio.current_time()
    await ends(one)
    ((path, arguments, environ),) = exits.executed
    assert path == sys.executable
    assert arguments == [sys.executable, *sys.orig_argv[1:]]
    assert environ == {"KEPT": "yes", LISTEN_FD: str(listener.fileno())}
    assert os.get_inheritable(listener.fileno())
    assert resident_file.read(tmp_path) == Legacy(REQUESTS, (1e6,), recoveries=1)
    assert exits.armed == [restart.DEADLINE_SECONDS]
    assert trio.current_time() - began < restart.DEADLINE_SECONDS
    assert exits.left == []


async def test_a_restart_by_order_counts_as_no_fault(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    for minute in range(6):
        one = restarter(exits, tmp_path, listener, now=1e6 + 60 * minute)
        one.renew()
        one.fault(0, "too late to matter")
        assert one.faulted
        await ends(one)
    assert len(exits.executed) == 6
    assert exits.left == []
    assert resident_file.read(tmp_path) == Legacy(REQUESTS)


async def test_without_a_fault_it_waits(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    with trio.move_on_after(1000) as scope:
        await restarter(exits, tmp_path, listener).run()
    assert scope.cancelled_caught
    assert (exits.executed, exits.left, exits.armed) == ([], [], [])


async def test_a_process_that_is_draining_is_not_replaced(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    one = attrs.evolve(restarter(exits, tmp_path, listener), draining=lambda: True)
    one.fault(0, "gone")
    await one.run()
    assert (exits.executed, exits.left, exits.armed) == ([], [], [])


async def test_a_drain_that_begins_after_a_fault_ends_the_process(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    began = trio.current_time()
    one = attrs.evolve(
        restarter(exits, tmp_path, listener), draining=lambda: trio.current_time() - began > 0.5
    )
    one.fault(0, "gone")
    await ends(one)
    assert (exits.executed, exits.left) == ([], [restart.GAVE_UP])


async def test_the_fifth_fault_in_ten_minutes_gives_up(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits()
    for minute in range(6):
        one = restarter(exits, tmp_path, listener, now=1e6 + 60 * minute)
        one.fault(0, "gone")
        await ends(one)
    assert len(exits.executed) == 4
    assert exits.left == [restart.GAVE_UP] * 2
    assert restart.GAVE_UP == 70
    one = restarter(exits, tmp_path, listener, now=1e6 + 700)
    one.fault(0, "gone")
    await ends(one)
    assert len(exits.executed) == 5
    assert resident_file.read(tmp_path).recoveries == 5


async def test_a_state_directory_that_cannot_be_written_does_not_stop_it(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    (tmp_path / "file").touch()
    exits = Exits()
    one = restarter(exits, tmp_path / "file", listener)
    one.fault(0, "gone")
    await ends(one)
    assert len(exits.executed) == 1


async def test_what_cannot_be_executed_gives_up(
    tmp_path: Path, listener: socket.socket, autojump_clock: object
) -> None:
    exits = Exits(error=OSError(2, "no such file"))
    one = restarter(exits, tmp_path, listener)
    one.fault(0, "gone")
    await ends(one)
    assert exits.left == [restart.GAVE_UP]


def test_the_inherited_listener_is_taken_once(listener: socket.socket) -> None:
    copy = listener.dup()
    environ = {LISTEN_FD: str(copy.detach())}
    with inherited_listener(environ) or pytest.fail("not taken") as inherited:
        assert inherited.getsockname() == listener.getsockname()
        assert inherited.family == socket.AF_INET
        assert not inherited.get_inheritable()
    assert environ == {}
    assert inherited_listener(environ) is None


@pytest.mark.parametrize("number", ["", "x", "-1", "99999"])
def test_a_number_that_is_no_listener_is_ignored(number: str) -> None:
    environ = {LISTEN_FD: number}
    assert inherited_listener(environ) is None
    assert environ == {}


def test_a_socket_that_does_not_listen_is_ignored_and_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert inherited_listener({LISTEN_FD: str(one.fileno())}) is None
        other.sendall(b"x")
        assert one.recv(1) == b"x"


def test_only_the_listener_survives_an_exec(listener: socket.socket) -> None:
    read, write = os.pipe()
    try:
        for number in (read, write, listener.fileno()):
            os.set_inheritable(number, True)
        restart.close_on_exec(keep=listener.fileno())
        assert not os.get_inheritable(read)
        assert not os.get_inheritable(write)
        assert os.get_inheritable(listener.fileno())
    finally:
        os.close(read)
        os.close(write)


def test_the_guard_counts_within_its_window_only() -> None:
    guard = LoopGuard(limit=2, window=10)
    assert [guard.allow(now) for now in (0, 1, 2, 9, 10, 10.5, 11)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert LoopGuard(limit=1, times=(1e9,)).allow(5)  # a clock that was set back


@pytest.mark.slow
def test_a_real_process_serves_again_under_its_id_with_its_models(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    role = subprocess.Popen(
        [sys.executable, "-m", "fakes.restart_role", str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environ,
    )
    try:
        assert role.stdout is not None
        port = int(role.stdout.readline())
        pid, boot, models = say(port, "who").split()
        assert int(pid) == role.pid
        assert models == "a:None,b:9"
        assert say(port, "fault") == "DeviceLost"  # what waited was answered
        # The listener outlives the process image: a connection made meanwhile is only slow.
        _, models = after(port, boot, role.pid)
        assert models == "a:None,b:9"
        boot = say(port, "who").split()[1]
        assert say(port, "renew") == "restarting"
        _, models = after(port, boot, role.pid)
        assert models == "a:None,b:9"
        assert resident_file.read(tmp_path).recoveries == 1  # the fault's
        # Now it is its fifth time within minutes, and it gives up.
        now = time.time()
        resident_file.write(tmp_path, Legacy((), (now - 3, now - 2, now - 1, now)))
        assert say(port, "fault") == "DeviceLost"
        assert role.wait(30) == restart.GAVE_UP
    finally:
        role.kill()
        role.wait()
        if role.stdout is not None:
            role.stdout.close()


def after(port: int, boot: str, pid: int) -> tuple[str, str]:
    """Boot number and models once the process of number *boot* has been replaced."""
    for _ in range(10_000):
        number, now, models = say(port, "who").split()
        assert int(number) == pid
        if now != boot:
            return now, models
    return pytest.fail("it was never replaced")


def say(port: int, word: str) -> str:
    """The answer to *word*, asked again when the process is replaced in the middle of it."""
    for _ in range(5):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(f"{word}\n".encode())
                answer = connection.makefile().readline().strip()
        except ConnectionError:
            continue
        if answer:
            return answer
    return pytest.fail("no answer")
