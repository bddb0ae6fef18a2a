"""Roles as processes: signals, the parent's end, errors, exit codes."""

import gc
import os
import resource
import signal
import subprocess
import sys

import pytest
import trio

from cortex.cli import runner
from cortex.cli.runner import PARENT_VARIABLE, own_command, run_role
from cortex.service.serve import listen


def kill_myself():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_role_that_ends_by_itself_ends_with_0():
    async def role(*, stop, task_status):
        task_status.started("http://here")

    assert run_role("gateway", role, {}) == 0


def test_what_is_to_happen_when_a_role_has_started_happens_then():
    seen = []

    async def role(*, stop, task_status):
        seen.append("begun")
        task_status.started()
        seen.append("serving")

    assert run_role("gateway", role, {}, on_started=lambda: seen.append("started")) == 0
    assert seen == ["begun", "started", "serving"]


def test_what_has_started_is_spared_by_the_collector():
    thresholds = gc.get_threshold()
    try:
        runner.spare_collector()
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == runner.COLLECT_AFTER
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_role_to_stop(number):
    seen = []

    async def role(*, stop, task_status):
        task_status.started()
        os.kill(os.getpid(), number)
        await stop()
        await stop()  # as often as it likes
        seen.append("drained")

    assert run_role("gateway", role, {}) == 0
    assert seen == ["drained"]


def test_a_signal_before_it_listens_stops_it_too():
    async def role(*, stop, task_status):
        kill_myself()
        await stop()

    assert run_role("neuron", role, {}) == 0


def test_a_hangup_is_told_to_a_role_that_asks_for_it():
    seen = []

    async def role(*, stop, hangup, task_status):
        task_status.started()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await hangup()
            seen.append("hangup")
        kill_myself()
        await stop()

    assert run_role("gateway", role, {}, hangups=True) == 0
    assert seen == ["hangup", "hangup"]


@pytest.fixture
def hangups_matter():
    """As from a shell; whoever runs the tests by ``nohup`` has them ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_matter")
def test_a_hangup_of_the_terminal_it_was_started_from_stops_it(monkeypatch):
    answers = iter([True, False])
    monkeypatch.setattr(runner, "_has_terminal", lambda: next(answers))

    async def role(*, stop, hangup, task_status):
        task_status.started()
        os.kill(os.getpid(), signal.SIGHUP)
        await stop()

    assert run_role("gateway", role, {}, hangups=True) == 0


def test_a_role_may_have_as_many_descriptors_as_the_system_lets_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fewer = min(soft, 512) if soft != resource.RLIM_INFINITY else 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (fewer, hard))
    seen = []

    async def role(*, stop, task_status):
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    try:
        assert run_role("gateway", role, {}) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen[0] > fewer or hard == fewer


def test_a_second_signal_ends_it_at_once():
    async def role(*, stop, task_status):
        task_status.started()
        kill_myself()
        await stop()
        kill_myself()
        await trio.sleep_forever()

    assert run_role("neuron", role, {}) == 1


def test_the_end_of_the_parent_asks_it_to_stop():
    reading, writing = os.pipe()

    async def role(*, stop, task_status):
        task_status.started()
        os.write(writing, b"ignored")
        await trio.testing.wait_all_tasks_blocked()
        os.close(writing)
        await stop()

    try:
        assert run_role("neuron", role, {PARENT_VARIABLE: str(reading)}) == 0
    finally:
        os.close(reading)


def test_a_parent_descriptor_that_is_none_leaves_the_role_alone(tmp_path):
    async def role(*, stop, task_status):
        await trio.testing.wait_all_tasks_blocked()

    with (tmp_path / "file").open("wb") as file:  # epoll takes no regular files
        assert run_role("neuron", role, {PARENT_VARIABLE: str(file.fileno())}) == 0


def test_each_error_in_a_group_is_one_line(capsys):
    async def role(*, stop, task_status):
        task_status.started()
        inner = ExceptionGroup("inner", [ValueError("second\nline"), KeyError("k")])
        raise ExceptionGroup("outer", [RuntimeError("first"), inner])

    assert run_role("gateway", role, {}) == 1
    assert capsys.readouterr().err.splitlines() == [
        "cortex gateway: RuntimeError: first",
        "cortex gateway: ValueError: second line",
        "cortex gateway: KeyError: 'k'",
    ]


def test_a_port_that_is_taken_ends_with_2_and_names_it(capsys):
    with listen("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]

        async def role(*, stop, task_status):
            listen(f"127.0.0.1:{port}")

        assert run_role("gateway", role, {}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cortex gateway: cannot listen: Address already in use")
    assert str(port) in line


def test_the_same_error_later_is_no_question_of_ports(capsys):
    async def role(*, stop, task_status):
        task_status.started()
        raise PermissionError(13, "Permission denied", "/state")

    assert run_role("gateway", role, {}) == 1
    assert "PermissionError" in capsys.readouterr().err


def test_the_program_starts_itself_again_as_it_was_started():
    flags = ["-P"] if sys.flags.safe_path else []
    module = own_command(["/x/cortex/__main__.py"], "cortex.__main__")
    assert module == [sys.executable, *flags, "-m", "cortex"]
    zipapp = own_command(["/x/cortex.pyz"], "__main__")
    assert zipapp == [sys.executable, *flags, "/x/cortex.pyz"]
    script = own_command(["bin/cortex"], "")
    assert script == [sys.executable, *flags, os.path.abspath("bin/cortex")]


def test_no_file_gets_the_number_of_a_standard_stream():
    told = subprocess.run(
        [sys.executable, "-c", CLOSED], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert told.split() == ["/dev/null", "/dev/null", "/dev/null"]


CLOSED = """
import os
from cortex.cli.runner import keep_standard_descriptors
out = os.dup(1)
for number in (0, 1, 2):
    os.close(number)
keep_standard_descriptors()
found = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
os.write(out, " ".join(found).encode())
"""
