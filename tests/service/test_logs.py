"""Log lines: one a event, printable, with the request's id."""

from __future__ import annotations

import io
import json
import logging
import os

import pytest

from cortex.service import logs
from cortex.service.log_format import MAX_VALUE


@pytest.fixture
def lines():
    stream = io.StringIO()
    loggers = [logging.getLogger("cortex"), logging.getLogger("hypercorn.error")]
    before = [(list(each.handlers), each.propagate, each.level) for each in loggers]
    logs.configure("info", stream=stream)
    yield lambda: stream.getvalue().splitlines()
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def test_an_event_is_one_line_with_its_fields(lines):
    logs.get("gateway.router").info("model loaded", model="a/b", seconds=1.5)
    (line,) = lines()
    assert line.endswith("info gateway.router model loaded model=a/b seconds=1.5")


def test_a_value_cannot_end_its_quotes(lines):
    logs.get("x").warning("bad", name='a\\" level=error b="')
    (line,) = lines()
    assert line.endswith('name="a\\\\\\" level=error b=\\""')


def test_neither_a_message_nor_a_traceback_forges_a_line(lines):
    hostile = "\n2026-01-01T00:00:00.000Z error x forged\x00\x1b[2J"
    try:
        raise ValueError(hostile)
    except ValueError:
        logging.getLogger("hypercorn.error").exception("failed%s", hostile)
    first, *rest = lines()
    assert "hypercorn.error" in first
    assert all(line.startswith("  ") for line in rest)
    assert all(line.isprintable() for line in (first, *rest))


def test_values_cannot_forge_lines_or_terminal_sequences(lines):
    logs.get("x").warning("bad", name='a\nlevel=error "q"\x1b[2J' + "y" * 10_000)
    (line,) = lines()
    assert "\x1b" not in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, "1"),
        (1.5, "1.5"),
        (None, "None"),
        (True, "True"),
        ("a/b:c", "a/b:c"),
        ("", '""'),
        ("a b", '"a b"'),
        ("é", "é"),
        ('a"b', '"a\\"b"'),
        ("\x7f", '"\\x7f"'),
        ("a\tb", '"a\\tb"'),
        ("\u2028", '"\\u2028"'),
    ],
)
def test_a_value_has_quotes_where_it_needs_them(lines, value, shown):
    logs.get("x").info("e", v=value)
    assert lines()[0].endswith(f" x e v={shown}")


def test_each_line_has_its_own_time(lines, monkeypatch):
    for now in (1e9, 1e9 + 0.25, 1e9 + 59.5):
        monkeypatch.setattr(logs.time, "time", lambda now=now: now)
        logs.get("x").info("e")
    assert [line.split()[0] for line in lines()] == [
        "2001-09-09T01:46:40.000Z",
        "2001-09-09T01:46:40.250Z",
        "2001-09-09T01:47:39.500Z",
    ]


def test_other_handlers_get_a_whole_record(caplog):
    caplog.set_level("INFO", "cortex.x")
    logs.get("x").warning("e", a=1)
    (record,) = caplog.records
    made = logging.makeLogRecord({})
    assert vars(record).keys() - vars(made).keys() - {"message", "asctime"} == {"cortex_fields"}
    assert vars(made).keys() <= vars(record).keys()
    assert (record.levelname, record.name, record.getMessage()) == ("WARNING", "cortex.x", "e")
    assert 0 <= record.msecs < 1000


def test_the_request_id_is_on_every_line_of_its_request(lines):
    token = logs.request_id.set("req_1")
    try:
        logs.get("x").info("something")
    finally:
        logs.request_id.reset(token)
    (line,) = lines()
    assert line.endswith("request=req_1")


def test_a_cause_chain_names_every_cause(lines):
    try:
        try:
            raise OSError("disk")
        except OSError as exc:
            raise ValueError("load") from exc
    except ValueError as exc:
        logs.get("x").error("failed", exc=exc)
    (line,) = lines()
    assert 'cause="ValueError: load <- OSError: disk"' in line


def test_json_lines_are_json(lines):
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    logs.get("x").debug("event", n=1, path="/a")
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["n"], entry["path"], entry["level"]) == (
        "event",
        1,
        "/a",
        "debug",
    )


def test_an_area_has_a_level_of_its_own_and_so_have_those_below():
    stream = io.StringIO()
    logs.configure("warning", "text", stream, areas={"gateway": "debug", "gateway.relay": "error"})
    try:
        logs.get("gateway.router").debug("shown")
        logs.get("gateway.relay").warning("hidden")
        logs.get("neuron").info("hidden")
        logs.get("neuron").warning("shown")
    finally:
        for area in ("gateway", "gateway.relay"):
            logging.getLogger(f"cortex.{area}").setLevel(logging.NOTSET)
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["shown", "shown"]


def test_json_values_cannot_forge_the_fields_of_a_line(lines):
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logs.get("x").info("e", level="error", big=1 << 70, long="y" * 10_000, half="\udc80")
    entry = json.loads(stream.getvalue())
    assert (entry["level"], entry["area"], entry["event"]) == ("info", "x", "e")
    assert entry["big"] == str(1 << 70)
    assert len(entry["long"]) == MAX_VALUE
    assert entry["half"] == "\\udc80"


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("text", False), ("json", True)])
def test_the_journal_is_known_by_its_stream(lines, tmp_path, form, is_json):
    with (tmp_path / "journal").open("w") as journal:
        status = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        logs.configure("info", form, journal, environ=environ)
        logs.get("x").warning("e", n=1)
    line = (tmp_path / "journal").read_text()
    assert line.startswith("<4>")
    if is_json:
        assert json.loads(line[3:])["n"] == 1
    else:
        assert line.endswith("warning x e n=1\n")


@pytest.mark.parametrize("stream", ["", "1:2", "x:y", "12"])
def test_what_is_not_the_journal_gets_text(lines, tmp_path, stream):
    with (tmp_path / "other").open("w") as other:
        logs.configure("info", "auto", other, environ={"JOURNAL_STREAM": stream})
        logs.get("x").warning("e", n=1)
    assert (tmp_path / "other").read_text().endswith("Z warning x e n=1\n")
