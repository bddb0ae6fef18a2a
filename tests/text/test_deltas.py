"""The pipeline from tokens to deltas: reasoning, content, tool calls, stop strings."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from fakes.tokenizers import SHOWN, byte_level, with_tokens
from fakes.tool_calls import CASES, TOOLS
from hypothesis import given
from hypothesis import strategies as st

from cortex.text.deltas import ContentDelta, Delta, OutputParser, ReasoningDelta, ToolCallDelta
from cortex.text.reasoning import ReasoningMarkers, find_markers
from cortex.text.tools.formats import BY_NAME, FORMATS
from cortex.text.tools.offer import Offer

TOKENIZER = byte_level()
MARKERS = find_markers(TOKENIZER)
HERMES = BY_NAME["hermes"]


def parser(**more: Any) -> OutputParser:
    numbers = count()
    options = {"reasoning": MARKERS, "tools": HERMES, "call_id": lambda: f"call_{next(numbers)}"}
    return OutputParser(TOKENIZER, **(options | more))


def told(deltas: list[Delta]) -> dict[str, Any]:
    """What a client puts together."""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            if delta.name is not None:
                assert delta.id is not None
                assert delta.index == len(calls)
                calls[delta.index] = [delta.id, delta.name, ""]
            calls[delta.index][2] += delta.arguments
    return {
        "content": "".join(d.text for d in deltas if isinstance(d, ContentDelta)),
        "reasoning": "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)),
        "calls": [tuple(call) for call in calls.values()],
    }


def run(text: str, **more: Any) -> dict[str, Any]:
    under = parser(**more)
    deltas = under.feed(*TOKENIZER.encode(text, special=True)) + under.finish()
    return told(deltas)


def answer(content: str = "", reasoning: str = "", calls: Any = ()) -> dict[str, Any]:
    return {"content": content, "reasoning": reasoning, "calls": list(calls)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello\n there \n", answer("Hello\n there \n")),
        ("<think>\nhm, so\n</think>\n\nHi", answer("Hi", "hm, so")),
        ("<think>\n\n</think>\n\nHi", answer("Hi")),
        ("<think>cut of", answer("", "cut of")),
        ("a</think>b", answer("ab")),
        ("a <think>b</think> c", answer("a  c", "b")),
        ("<think>x</think>\n", answer("", "x")),
    ],
)
def test_reasoning_is_told_apart_by_its_markers(text, expected):
    assert run(text) == expected


def test_thinking_that_the_prompt_opened_goes_on():
    assert run("\nhm</think>\n\nHi", in_reasoning=True) == answer("Hi", "hm")
    assert run("never closed\n", in_reasoning=True) == answer("", "never closed\n")


def test_markers_are_text_to_a_request_without_reasoning():
    assert run("<think>a</think>b", reasoning=None) == answer("<think>a</think>b")


def test_reasoning_tokens_are_counted():
    under = parser()
    ids = TOKENIZER.encode("<think>hm</think>Hi", special=True)
    under.feed(*ids)
    assert under.reasoning_tokens == ids.index(MARKERS.close) + 1
    assert under.content_tokens == len(ids) - under.reasoning_tokens


@pytest.mark.parametrize(
    ("prompt", "left_open"),
    [([1, 2], False), ([8, 1], True), ([8, 9, 1], False), ([8, 9, 8], True), ([], False)],
)
def test_the_prompt_says_whether_thinking_is_under_way(prompt, left_open):
    assert ReasoningMarkers(open=8, close=9).left_open(prompt) is left_open


ARGUMENTS = '{"a": "x\\"}</tool_call>", "b": [1, {}]}'
CALL = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, answer(calls=[("call_0", "f", ARGUMENTS)])),
        (f"So:\n{CALL}\n", answer("So:", calls=[("call_0", "f", ARGUMENTS)])),
        (
            f"<think>t</think>\n{CALL}\n{CALL}",
            answer("", "t", [("call_0", "f", ARGUMENTS), ("call_1", "f", ARGUMENTS)]),
        ),
        (
            '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
            answer(calls=[("call_0", "f", '{"a": 1}')]),
        ),
        ('<tool_call>{"name": "f"}</tool_call>', answer(calls=[("call_0", "f", "{}")])),
        (
            '<tool_call>{"name": "f", "arguments": null}</tool_call>',
            answer(calls=[("call_0", "f", "{}")]),
        ),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            answer(calls=[("call_0", "f", '{"a": 1}')]),
        ),
        (
            '<tool_call>{"name": "f", "parameters": {"é": "日"}}}</tool_call> Done',
            answer(" Done", calls=[("call_0", "f", '{"é": "日"}')]),
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "cut',
            answer(calls=[("call_0", "f", '{"a": "cut')]),
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "<think>b</think>"}}</tool_call>',
            answer(calls=[("call_0", "f", '{"a": "<think>b</think>"}')]),
        ),
        (
            '<tool_call>{"name": "f", "arguments": {}}\n</tool_',
            answer(calls=[("call_0", "f", "{}")]),
        ),
        (
            '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
            answer('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ),
        (
            '<tool_call>{"name": "f", "arguments": "\\ud800"}</tool_call>',
            answer('<tool_call>{"name": "f", "arguments": "\\ud800"}</tool_call>'),
        ),
        ('<tool_call>{"name": "f", "argu', answer('<tool_call>{"name": "f", "argu')),
        ("<tool_call>nothing</tool_call>", answer("<tool_call>nothing</tool_call>")),
        ("<tool_call>", answer("<tool_call>")),
        ("a <tool_ca", answer("a <tool_ca")),
        ('<tool_call>{"name": 3}</tool_call>', answer('<tool_call>{"name": 3}</tool_call>')),
        (f"<tool_call>x{CALL}", answer("<tool_call>x", calls=[("call_0", "f", ARGUMENTS)])),
        (
            '<tool_call>{"name": "f", "arguments": {}} <tool_call>{"name": "g", "arguments": {}}',
            answer(calls=[("call_0", "f", "{}"), ("call_1", "g", "{}")]),
        ),
    ],
)
def test_calls_and_text_around_them(text, expected):
    assert run(text) == expected
    under = parser()  # the same, whatever the tokens are
    characters = [TOKENIZER.encode(c, special=False) for c in text]
    if "<think>" not in text:
        said = [under.feed(*ids) for ids in characters]
        assert told([d for deltas in said for d in deltas] + under.finish()) == expected


MARKED = with_tokens({marker for row in FORMATS for marker in row.markers})


@pytest.mark.parametrize("vocabulary", [TOKENIZER, MARKED], ids=["text", "tokens"])
@pytest.mark.parametrize("name", CASES)
def test_every_family_is_read_whatever_its_tokens_are(name, vocabulary):
    """Markers as single tokens, which decoding leaves out, or spelled; in tokens or in bytes."""
    for case in CASES[name]:
        if "<think>" in case.text:
            continue
        tokens = vocabulary.encode(case.text, special=True)
        spelled = [i for c in case.text for i in vocabulary.encode_plain(c)]
        found = []
        for pieces in ([tokens], [[i] for i in tokens], [[i] for i in spelled]):
            numbers = count()
            under = OutputParser(
                vocabulary,
                tools=BY_NAME[name],
                offer=Offer.of(TOOLS),
                call_id=lambda numbers=numbers: f"call_{next(numbers)}",
            )
            deltas = [delta for piece in pieces for delta in under.feed(*piece)]
            found.append(told(deltas + under.finish(cut=case.cut)))
        assert found[0] == found[1] == found[2]
        assert [call[1:] for call in found[0]["calls"]] == list(case.calls)
        assert found[0]["content"].split() == case.content.split()  # but for space before calls


def test_what_names_no_tool_on_offer_is_text_where_others_are_excluded():
    offer = Offer.of(TOOLS, exclusive=True)
    assert run(CALL, offer=offer) == answer(CALL)


def test_nothing_is_told_after_the_one_call_that_is_wanted():
    under = parser(parallel=False)
    ids = TOKENIZER.encode(f"So {CALL}\n{CALL} more", special=True)
    deltas = [delta for i in ids for delta in under.feed(i)]
    assert under.ended
    assert under.finish() == []
    assert told(deltas) == answer("So", calls=[("call_0", "f", ARGUMENTS)])


def test_arguments_come_as_they_are_written():
    under = parser()
    deltas = [under.feed(i) for i in TOKENIZER.encode(CALL, special=True)]
    fragments = [d for said in deltas for d in said]
    assert fragments[0] == ToolCallDelta(0, "call_0", "f", "")
    assert len(fragments) > 5
    assert json.loads("".join(d.arguments for d in fragments)) == {
        "a": 'x"}</tool_call>',
        "b": [1, {}],
    }
    assert under.tool_calls == 1


def test_calls_are_text_to_a_request_without_tools():
    assert run(CALL, tools=None) == answer(CALL)


@given(
    st.lists(
        st.one_of(
            st.sampled_from([*SHOWN, "\n", '{"name": "f", "arguments": ', "{}", "}", '"']),
            st.text(max_size=4),
        ),
        max_size=8,
    )
)
def test_nothing_but_whitespace_and_markers_is_lost(pieces):
    text = "".join(pieces)
    result = run(text, tools=None)
    kept = result["reasoning"] + result["content"]
    strip = text.replace("<think>", "").replace("</think>", "")
    assert sorted(kept.replace("\n", "").replace("\r", "")) == sorted(
        strip.replace("\n", "").replace("\r", "")
    )
    if "name" not in text:
        with_tools = run(text)
        assert with_tools["calls"] == []
        assert with_tools["content"] == result["content"]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([CALL, "<tool_call>", "</tool_call>", "{", '"', "\n", " a "]),
            st.text(max_size=3),
        ),
        max_size=6,
    ),
    st.lists(st.text("a{\n", min_size=1, max_size=2), max_size=2),
)
def test_how_tokens_are_cut_makes_no_difference(pieces, stops):
    text = "".join(pieces)
    under = parser(stops=stops, reasoning=None)
    characters = [i for c in text for i in TOKENIZER.encode(c, special=False)]
    apart = told(under.feed(*characters) + under.finish())
    assert apart == run(text, stops=stops, reasoning=None)


def test_stop_strings_end_the_answer():
    under = parser(stops=["dog"])
    ids = TOKENIZER.encode("the lazy dog, and", special=True)
    deltas = [d for i in ids for d in under.feed(i)]
    assert told(deltas + under.finish()) == answer("the lazy ")
    assert under.matched_stop == "dog"
    assert under.feed(*ids) == []


def test_stop_strings_leave_reasoning_and_calls_alone():
    text = f"<think>a stop</think>b\n{CALL}"
    assert run(text, stops=["stop", "x"]) == answer("b", "a stop", [("call_0", "f", ARGUMENTS)])


def test_a_stop_string_of_whitespace_is_seen_when_it_comes():
    under = parser(stops=["\n\n"])
    under.feed(*TOKENIZER.encode("a\n\n", special=True))
    assert under.matched_stop == "\n\n"


def test_a_stop_string_found_at_the_end_is_told():
    under = parser(stops=["ab", "abc"])
    deltas = under.feed(*TOKENIZER.encode("xab", special=True)) + under.finish()
    assert told(deltas) == answer("x")
    assert under.matched_stop == "ab"


def test_a_body_too_deep_to_read_is_text():
    text = '<tool_call>{"arguments": ' + "[" * 5000 + "]" * 5000 + ', "name": "f"}</tool_call>'
    assert run(text) == answer(text)


def test_a_stop_string_does_not_reach_across_thinking_or_a_call():
    assert run("a ST<think>x</think>OP b", stops=["STOP"]) == answer("a STOP b", "x")
    split = run(f"a ST{CALL}OP b", stops=["STOP"])
    assert split == answer("a STOP b", calls=[("call_0", "f", ARGUMENTS)])


def test_a_stop_string_in_what_proved_to_be_no_call_ends_the_answer():
    under = parser(stops=["halt"])
    ids = TOKENIZER.encode("a <tool_call>b halt</tool_call> c", special=True)
    assert told(under.feed(*ids) + under.finish()) == answer("a <tool_call>b ")
    assert under.matched_stop == "halt"
