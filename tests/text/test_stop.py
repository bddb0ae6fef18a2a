"""Stop strings: what a search of the whole text finds, wherever it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.text.stop import StopMatcher, held_from


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The oracle: each place in turn, the longest stop string first."""
    for at in range(len(text)):
        for stop in sorted(stops, key=len, reverse=True):
            if text.startswith(stop, at):
                return text[:at], stop
    return text, None


def in_pieces(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    said = ""
    for piece in pieces:
        safe, matched = matcher.feed(piece)
        said += safe
        if matched is not None:
            return said, matched
    return said + matcher.flush(), matcher.matched


@given(
    st.text("ab<", max_size=14),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 14), max_size=5),
)
def test_cutting_the_text_makes_no_difference(text, stops, cuts):
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    assert in_pieces(pieces, stops) == whole(text, stops)
    assert in_pieces(list(text), stops) == whole(text, stops)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1))
def test_only_what_may_still_become_a_stop_is_held(text, stops):
    at = held_from(text, stops)
    starts = [
        n for n in range(len(text)) if any(s != text[n:] and s.startswith(text[n:]) for s in stops)
    ]
    assert at == min(starts, default=len(text))


def test_text_before_the_match_is_given_and_nothing_after_it():
    matcher = StopMatcher(["END"])
    assert matcher.feed("one EN") == ("one ", None)
    assert matcher.feed("D two") == ("", "END")
    assert matcher.feed("more") == ("", "END")
    assert matcher.flush() == ""


def test_a_match_that_waits_for_a_longer_one_is_told_at_the_end():
    matcher = StopMatcher(["ab", "abc"])
    assert matcher.feed("xab") == ("x", None)
    assert matcher.flush() == ""
    assert matcher.matched == "ab"


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stops_everything_passes_at_once(stops):
    matcher = StopMatcher(stops)
    assert matcher.feed("abc") == ("abc", None)
    assert matcher.flush() == ""
