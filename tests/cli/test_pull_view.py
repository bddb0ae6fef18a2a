"""What is shown of a pull, and when."""

import json

import attrs
import pytest

from cortex.cli.pull_view import JsonLines, PlainLines, far, outcome, size
from cortex.wire import neuron as wire

GIB = 1 << 30
COMING = wire.Pull(
    "org/m",
    wire.PULLING,
    stage="download",
    bytes_done=GIB,
    bytes_total=4 * GIB,
    bytes_per_second=95 << 20,
    eta_seconds=32.3,
)
ENDED = wire.Pull("org/m", wire.PULLED, seconds=2.0, size=GIB, fetched=GIB)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (2048, "2 KiB"),
        (5 << 20, "5.0 MiB"),
        (int(1.5 * GIB), "1.5 GiB"),
    ],
)
def test_sizes(count, words):
    assert size(count) == words


def test_how_far_it_is():
    assert far(COMING) == "1.0 GiB of 4.0 GiB, 25%, 95.0 MiB/s, 32 s left"
    assert far(attrs.evolve(COMING, bytes_per_second=None, eta_seconds=None)).endswith(", 25%")
    assert far(attrs.evolve(COMING, bytes_total=None)) == ""


@pytest.mark.parametrize(
    ("where", "fields", "words"),
    [
        ("", {}, "org/m is here, 1.0 GiB fetched in 2 s (1.0 GiB)"),
        ("gpu1", {"fetched": 0}, "org/m on gpu1: there already (1.0 GiB)"),
        ("", {"fetched": 0, "offline": True}, "org/m is here, as the cache has it: the hub is"),
        ("", {"repaired": ("a", "b")}, "repaired: a, b (1.0 GiB)"),
        ("", {"status": wire.FAILED, "error": "no room"}, "org/m: no room"),
        ("", {"status": wire.CANCELLED}, "org/m: stopped; what came is kept"),
    ],
)
def test_how_it_ended(where, fields, words):
    assert words in outcome(where, attrs.evolve(ENDED, **fields), verified=False)


def test_what_was_verified_is_said_to_be():
    here = attrs.evolve(ENDED, fetched=0)
    assert outcome("", here, verified=True) == "org/m is here already, verified (1.0 GiB)"


def test_a_pipe_gets_a_line_now_and_then(capsys):
    clock = Clock()
    view = PlainLines(clock)
    view.show("", wire.Pull("org/m", wire.PULLING, stage="resolve"))
    for second in range(25):
        clock.now = second
        view.show("", COMING)
    view.show("", attrs.evolve(COMING, stage="verify"))
    view.show("", ENDED)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["download"] * 3 + ["verify"]


def test_each_node_has_lines_of_its_own(capsys):
    view = PlainLines(Clock())
    for node in ("a", "b", "a"):
        view.show(node, COMING)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["org/m on a", "org/m on b"]


def test_json_is_a_line_a_second_and_the_end_at_once(capsys):
    clock = Clock()
    view = JsonLines(clock)
    for tenth in range(25):
        clock.now = tenth / 10
        view.show("gpu1", COMING)
    view.show("gpu1", ENDED)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["status"] for each in told] == ["pulling"] * 3 + ["pulled"]
    assert told[0]["bytes_done"] == GIB
    assert told[-1] == {
        "node": "gpu1",
        "id": "org/m",
        "status": "pulled",
        "seconds": 2.0,
        "size": GIB,
        "fetched": GIB,
    }


def test_what_a_server_sends_moves_no_cursor():
    hostile = "\x1b[2J\n"
    failed = wire.Pull(f"org/{hostile}", wire.FAILED, error=hostile)
    fields = {"path": f"/{hostile}", "repaired": (hostile,)}
    for pull in (failed, attrs.evolve(ENDED, **fields)):
        told = outcome(hostile, pull, verified=False)
        assert "".join(told.split("\n")).isprintable()
        assert told.count("\n") == (1 if pull.path else 0)
