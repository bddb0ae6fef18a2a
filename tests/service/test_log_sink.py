"""Readers that do not read the log: nothing blocks, nothing raises, what is lost is counted."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket

import pytest

from cortex.service.log_format import FIELDS, LineFormatter
from cortex.service.log_sink import LineHandler, Sink

LINE = b"x" * 199 + b"\n"
ROOM = 64 * 1024  # of a pipe


def read_all(descriptor):
    os.set_blocking(descriptor, False)
    found = b""
    while True:
        try:
            piece = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return found
        if not piece:
            return found
        found += piece


@pytest.fixture(params=["pipe", "socket"])
def ends(request):
    """A reading and a writing end, and what closes the reading one."""
    if request.param == "pipe":
        reading, writing = os.pipe()
    else:
        pair = socket.socketpair()
        reading, writing = (each.detach() for each in pair)
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def sink(ends):
    sink = Sink(ends[1])
    yield sink
    sink.close()


def test_lines_arrive(ends, sink):
    assert sink.write(b"one\n")
    assert sink.write(b"y" * 10_000 + b"\n")  # longer than is written at once
    assert read_all(ends[0]) == b"one\n" + b"y" * 10_000 + b"\n"
    assert sink.dropped == 0


def test_a_reader_that_does_not_read_loses_lines_and_holds_nobody(ends, sink):
    written = sum(sink.write(LINE) for _ in range(5000))
    assert 0 < written < 5000
    assert sink.dropped == 5000 - written
    found = read_all(ends[0])
    assert found.count(LINE) == written
    assert sink.write(b"after\n")
    assert read_all(ends[0]).splitlines()[-1] == b"after"


def test_what_is_cut_short_ends_before_the_next_line(ends, sink):
    assert not sink.write(b"z" * (64 * ROOM) + b"\n")
    cut = read_all(ends[0])
    assert set(cut) == {ord("z")}
    assert sink.write(LINE)
    assert read_all(ends[0]) == b"\n" + LINE


def test_the_descriptor_stays_as_it_was(ends, sink):
    sink.write(LINE)
    assert os.get_blocking(ends[1])


def test_a_reader_that_is_gone_harms_nobody(ends, sink):
    os.close(ends[0])
    assert not sink.write(LINE)
    assert not sink.write(LINE)
    assert sink.dropped == 2


def test_waiting_in_vain_is_not_repeated_at_once(ends, monkeypatch):
    now = [0.0]
    sink = Sink(ends[1], lambda: now[0])
    waits = []

    class Polled:
        def poll(self, milliseconds):
            waits.append(milliseconds)
            now[0] += milliseconds / 1000
            return []

    monkeypatch.setattr(sink, "_polled", Polled())
    for _ in range(3):
        sink.write(LINE)
    assert waits == [50, 0, 0]
    now[0] += 2
    sink.write(LINE)
    assert waits[-1] == pytest.approx(50)
    sink.close()


def test_a_reader_that_drips_takes_no_more_time_than_one_that_takes_nothing(ends, monkeypatch):
    now = [0.0]
    sink = Sink(ends[1], lambda: now[0])

    class Polled:
        def poll(self, milliseconds):
            now[0] += min(milliseconds, 30) / 1000
            return [] if milliseconds < 30 else [(ends[1], select.POLLOUT)]

    monkeypatch.setattr(sink, "_polled", Polled())
    taken = [sink.write(LINE) for _ in range(100)]
    assert taken[0]
    assert sum(taken) == 1
    assert now[0] <= 0.055  # of waiting: what one may have at once, and what that earned
    now[0] += 2
    assert sink.write(LINE)
    sink.close()


def test_a_file_is_appended_to(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as file:
        sink = Sink(file.fileno())
        assert sink.write(LINE)
        sink.close()
    assert path.read_bytes() == b"before\n" + LINE


def test_a_full_disk_is_counted():
    with open("/dev/full", "wb", buffering=0) as full:
        sink = Sink(full.fileno())
        assert not sink.write(LINE)
        assert sink.dropped == 1
        sink.close()


@pytest.mark.parametrize("descriptor", [None, 1_000_000])
def test_no_stderr_is_no_harm(descriptor):
    sink = Sink(descriptor)
    assert not sink.write(LINE)
    assert sink.dropped == 1


def record(message, level=logging.INFO, **fields):
    about = {"name": "cortex.x", "msg": message, "levelno": level, FIELDS: fields}
    return logging.makeLogRecord(about | {"levelname": logging.getLevelName(level)})


@pytest.fixture
def handler(ends, sink):
    handler = LineHandler(sink)
    handler.setFormatter(LineFormatter())
    yield handler
    handler.close()


def test_what_was_lost_is_said_once_when_lines_pass_again(ends, handler):
    for _ in range(3000):
        handler.emit(record("e", value="v" * 300))
    lost = handler._sink.dropped
    assert lost > 0
    read_all(ends[0])
    handler.emit(record("again"))
    handler.emit(record("and again"))
    again, told, more = read_all(ends[0]).decode().splitlines()[-3:]
    assert again.endswith("x again")
    assert told.endswith(f"warning service.logs lines of this log were dropped dropped={lost}")
    assert more.endswith("x and again")


class Unspeakable:
    def __str__(self):
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_raises_nothing(ends, handler):
    handler.emit(record("e", value=Unspeakable()))
    handler.emit(record("e", value="\udc80"))
    first, second = read_all(ends[0]).decode().splitlines()
    assert "cannot be shown error=RuntimeError" in first
    assert second.endswith('value="\\udc80"')


@pytest.mark.parametrize(
    ("level", "mark"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
    ],
)
def test_the_journal_gets_a_priority_on_each_line(ends, sink, level, mark):
    handler = LineHandler(sink, priorities=True)
    handler.setFormatter(logging.Formatter("one\n%(message)s"))
    handler.emit(record("two", level))
    assert read_all(ends[0]).decode() == f"{mark}one\n{mark}two\n"
