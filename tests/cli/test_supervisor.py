"""Children live and end together. They are real processes, small ones."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import trio

from cortex.cli.supervisor import GRACE_SECONDS, Child, supervise

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BOUND = 30  # seconds after which a test has failed

# Says that it runs, ends when told to and says so, ends when its parent does.
OBEDIENT = """
import os, select, signal, sys
name, log = sys.argv[1:]
def say(what):
    with open(log, "a") as file:
        file.write(name + " " + what + "\\n")
def end(*_):
    say("drained")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
say("runs")
select.select([int(os.environ["CORTEX_PARENT_FD"])], [], [])
say("orphaned")
"""
STUBBORN = OBEDIENT.replace(
    "signal.signal(signal.SIGTERM, end)", "signal.signal(15, signal.SIG_IGN)"
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def child(name, log, program=OBEDIENT, drain_seconds=20.0):
    command = (sys.executable, "-S", "-E", "-c", program, name, str(log))
    return Child(name, command, dict(os.environ), drain_seconds)


def run(children, started):
    async def begin(start):
        for child in children:
            await start(child)
        return await started()

    async def main():
        with trio.fail_after(BOUND):
            return await supervise(begin)

    return trio.run(main)


def lines(log):
    return log.read_text().splitlines()


async def until(log, *expected):
    while True:
        if set(expected) <= set(lines(log)):
            return
        await trio.sleep(0.01)


def test_a_signal_drains_the_children_the_last_one_first_and_ends_with_0(log):
    async def started():
        await until(log, "gateway runs", "neuron runs")
        os.kill(os.getpid(), signal.SIGINT)
        return True

    assert run([child("neuron", log), child("gateway", log)], started) == 0
    assert lines(log)[2:] == ["gateway drained", "neuron drained"]


@pytest.mark.parametrize(("status", "code"), [(0, 1), (1, 1), (70, 1), (2, 2)])
def test_a_child_that_ends_takes_the_other_with_it(log, capfd, status, code):
    dying = child("neuron", log, f"import sys; sys.exit({status})")

    async def started():
        await trio.sleep_forever()

    assert run([child("gateway", log), dying], started) == code
    assert f"the neuron ended with code {status}" in capfd.readouterr().err
    assert "gateway orphaned" not in lines(log)


def test_a_child_that_was_killed_is_told_so(log, capfd):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"

    async def started():
        return True

    assert run([child("neuron", log, program)], started) == 1
    assert "the neuron ended by SIGKILL" in capfd.readouterr().err


def test_a_start_that_fails_drains_the_children_and_ends_with_1(log):
    async def started():
        await until(log, "gateway runs")
        return False

    assert run([child("gateway", log)], started) == 1
    assert lines(log) == ["gateway runs", "gateway drained"]


def test_a_child_that_does_not_drain_is_killed(log, capfd):
    async def started():
        await until(log, "gateway runs")
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    stubborn = child("gateway", log, STUBBORN, drain_seconds=0.1 - GRACE_SECONDS)
    assert run([stubborn], started) == 1
    assert "killing it" in capfd.readouterr().err
    assert lines(log) == ["gateway runs"]


def test_a_second_signal_kills_at_once(log):
    async def started():
        await until(log, "gateway runs")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return True

    began = time.monotonic()
    assert run([child("gateway", log, STUBBORN)], started) == 1
    assert time.monotonic() - began < BOUND / 2
    assert lines(log) == ["gateway runs"]


def test_a_command_that_cannot_be_started_leaves_no_child_behind(log):
    async def started():
        return True

    missing = Child("neuron", ("/no/such/program",), {}, 1.0)
    with pytest.raises(ExceptionGroup) as group:
        run([child("gateway", log), missing], started)
    assert group.group_contains(FileNotFoundError)


async def test_the_children_end_with_a_supervisor_that_was_killed(log):
    program = (
        "import sys, trio\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path\n"
        "import test_supervisor as t\n"
        f"log = Path({str(log)!r})\n"
        "async def started(): return True\n"
        "t.run([t.child('neuron', log), t.child('gateway', log)], started)\n"
    )
    supervisor = await trio.lowlevel.open_process([sys.executable, "-c", program])
    try:
        with trio.fail_after(BOUND):
            await until(log, "gateway runs", "neuron runs")
            supervisor.kill()
            await until(log, "gateway orphaned", "neuron orphaned")
    finally:
        supervisor.kill()
        await supervisor.wait()
