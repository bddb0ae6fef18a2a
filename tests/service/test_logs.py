"""Log lines: one a event, printable, with the request's id."""

from __future__ import annotations

import io
import json
import logging

import pytest

from cortex.service import logs


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


def test_values_cannot_forge_lines_or_terminal_sequences(lines):
    logs.get("x").warning("bad", name='a\nlevel=error "q"\x1b[2J' + "y" * 10_000)
    (line,) = lines()
    assert "\x1b" not in line
    assert len(line) < 700


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
    logs.configure("debug", json=True, stream=stream)
    logs.get("x").debug("event", n=1, path="/a")
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["n"], entry["path"], entry["level"]) == (
        "event",
        1,
        "/a",
        "debug",
    )
