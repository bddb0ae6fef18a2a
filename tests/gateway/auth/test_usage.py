from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.auth.usage import Entry, Sums, parse, summed

ENTRY = Entry(1795737600.5, "k", "m", "a", "openai-chat", 200, 7, 2, 3, 0.25, 1.5)


@pytest.mark.parametrize("ttft", [0.25, None])
def test_an_entry_comes_back_from_its_line(ttft):
    entry = attrs.evolve(ENTRY, ttft=ttft)
    line = entry.line()
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    assert parse(line) == entry


def test_a_line_that_was_cut_off_is_no_entry():
    line = ENTRY.line()[:-1]
    for end in range(len(line)):
        assert parse(line[:end]) is None


@given(st.binary(max_size=80))
def test_garbage_is_no_entry(data):
    assert parse(data) is None


@pytest.mark.parametrize(
    "line", [b"[]", b"[1,2]", b"{}", b'["x","k","m","a","d",200,1,0,1,null,1]', b"null"]
)
def test_json_that_is_none_is_no_entry(line):
    assert parse(line) is None


def test_sums_are_by_key_model_and_day():
    entries = [
        ENTRY,
        attrs.evolve(ENTRY, code=500, prompt=0, cached=0, completion=0),
        attrs.evolve(ENTRY, code=499),  # the client left: no error of ours
        attrs.evolve(ENTRY, key="l"),
        attrs.evolve(ENTRY, model="n"),
        attrs.evolve(ENTRY, time=ENTRY.time - 1),
    ]
    assert summed(entries) == {
        ("k", "m", "2026-11-27"): Sums(3, 1, 14, 4, 6),
        ("l", "m", "2026-11-27"): Sums(1, 0, 7, 2, 3),
        ("k", "n", "2026-11-27"): Sums(1, 0, 7, 2, 3),
        ("k", "m", "2026-11-26"): Sums(1, 0, 7, 2, 3),
    }
