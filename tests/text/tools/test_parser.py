"""Tool calls out of streamed text: the same wherever it is cut, and nothing lost."""

from __future__ import annotations

import json
from itertools import count, pairwise
from typing import Any

import pytest
from fakes.tool_calls import CASES, TOOLS, TRICKY, Case, wrap
from hypothesis import given
from hypothesis import strategies as st

from cortex.text.tools.formats import BY_NAME, FORMATS
from cortex.text.tools.offer import Offer
from cortex.text.tools.parser import Part, TextPart, ToolCallParser

OFFER = Offer.of(TOOLS)
TABLE = [
    pytest.param(name, each, id=f"{name}-{number}")
    for name, cases in CASES.items()
    for number, each in enumerate(cases)
]


def told(parts: list[Part]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text and the calls that a client puts together."""
    calls: list[list[str]] = []
    for part in parts:
        if not isinstance(part, TextPart):
            if part.name is not None:
                assert (part.index, part.id) == (len(calls), f"call_{len(calls)}")
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    return text, tuple((name, arguments) for name, arguments in calls)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def parser(name: str, offer: Offer = OFFER, **more: Any) -> ToolCallParser:
    numbers = count()
    return ToolCallParser(BY_NAME[name], offer, lambda: f"call_{next(numbers)}", **more)


def parsed(name: str, pieces: list[str], *, cut: bool = False, **more: Any) -> Any:
    under = parser(name, **more)
    parts = [part for piece in pieces for part in under.feed(piece)]
    return told(parts + under.finish(cut=cut))


@pytest.mark.parametrize(("name", "case"), TABLE)
def test_what_models_write(name: str, case: Case) -> None:
    assert parsed(name, [case.text], cut=case.cut) == (case.content, case.calls)


@pytest.mark.parametrize(("name", "case"), TABLE)
def test_every_cut_gives_what_the_whole_gives(name: str, case: Case) -> None:
    text, expected = case.text, (case.content, case.calls)
    assert parsed(name, list(text), cut=case.cut) == expected
    for n in range(len(text)):
        assert parsed(name, [text[:n], text[n:]], cut=case.cut) == expected, n


def test_every_format_has_its_table() -> None:
    assert set(CASES) == {row.name for row in FORMATS}
    assert all(len(cases) >= 12 for cases in CASES.values())


@pytest.mark.parametrize(("name", "case"), TABLE)
def test_complete_calls_hold_json_objects(name: str, case: Case) -> None:
    under = parser(name)
    under.feed(case.text)
    if under.calls and not under.in_call:
        _, calls = told(parser(name).feed(case.text))
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


@pytest.mark.parametrize("name", CASES)
def test_a_call_cut_by_the_limit_never_looks_whole(name: str) -> None:
    """However far it has come: its arguments grow, and are JSON only when all are there."""
    for case in CASES[name]:
        if case.content or case.cut or len(case.calls) != 1:
            continue
        (whole,) = case.calls
        lengths = []
        for n in range(len(case.text)):
            _, calls = parsed(name, [case.text[:n]], cut=True)
            if not calls:
                continue
            assert calls[0][0] == whole[0]
            assert whole[1].startswith(calls[0][1])
            lengths.append(len(calls[0][1]))
            if calls[0][1] != whole[1]:
                assert not is_json(calls[0][1])
        assert all(shorter <= longer for shorter, longer in pairwise(lengths))


MARKERS = {marker for row in FORMATS for marker in (*row.markers, *row.open, *row.close)}
SIGNS = ["find", "now", "q=1", "True", "<function=find>", "<parameter=q>", "</parameter>"]
SIGNS += ["</function>", '"parameters":{', '"arguments":{}', "```json", *"{}[](),;:\"'\\=é"]
JUNK = [*sorted(MARKERS), *SIGNS, "\n", " ", '{"name": "find", ']
PIECES = st.lists(st.one_of(st.sampled_from(JUNK), st.text(max_size=3)), max_size=14)


@pytest.mark.parametrize("name", CASES)
@given(pieces=PIECES, size=st.integers(1, 5), cut=st.booleans())
def test_junk_never_fails_and_is_read_alike_wherever_it_is_cut(
    name: str, pieces: list[str], size: int, cut: bool
) -> None:
    text = "".join(pieces)
    whole = parsed(name, [text], cut=cut)
    assert parsed(name, [text[n : n + size] for n in range(0, len(text), size)], cut=cut) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_calls_among_junk_are_read_alike_wherever_they_are_cut(name: str, data: Any) -> None:
    texts = [case.text for case in CASES[name] if case.calls]
    pieces = st.one_of(st.sampled_from(texts), st.sampled_from(JUNK), st.text(max_size=3))
    text = "".join(data.draw(st.lists(pieces, max_size=5)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    assert parsed(name, [text[a:b] for a, b in pairwise(edges)]) == parsed(name, [text])


def test_arguments_come_as_they_are_written() -> None:
    texts = {
        "hermes": wrap(TRICKY),
        "llama3_json": f'{{"name": "find", "parameters": {TRICKY}}}',
        "mistral_v11": f"[TOOL_CALLS]find[ARGS]{TRICKY}",
        "qwen3_coder": "<tool_call><function=find><parameter=q>a long text of a file",
    }
    for name, text in texts.items():
        under = parser(name)
        pieces = [part.arguments for c in text for part in under.feed(c)]  # type: ignore[union-attr]
        assert len(list(filter(None, pieces))) > 15


def test_one_call_ends_it_all_where_no_more_are_wanted() -> None:
    for name, cases in CASES.items():
        for case in cases:
            if len(case.calls) < 2:
                continue
            under = parser(name, parallel=False)
            parts = under.feed(case.text)
            assert under.ended
            assert told(parts)[1] == case.calls[:1]
            assert (under.feed("more"), under.finish()) == ([], [])


def test_an_exclusive_offer_takes_its_own_names_alone() -> None:
    offer = Offer.of(TOOLS[:1], exclusive=True)
    texts = {
        "hermes": wrap("{}", "now"),
        "qwen3_coder": "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "mistral_v11": "[TOOL_CALLS]now[ARGS]{}",
        "mistral": '[TOOL_CALLS][{"name": "now", "arguments": {}}]',
        "pythonic": "[now()]",
    }
    for name, text in texts.items():
        assert parsed(name, [text], offer=offer) == (text, ())
        allowed = text.replace("now", "find")
        assert parsed(name, [allowed], offer=offer) == ("", (("find", "{}"),))


def test_what_continues_an_answer_begins_no_bare_call() -> None:
    for name, text in (
        ("llama3_json", '{"name": "now", "parameters": {}}'),
        ("pythonic", "[now()]"),
    ):
        assert parsed(name, [text], begins=False) == (text, ())


def test_ids_are_those_that_the_family_takes() -> None:
    for row in FORMATS:
        (call,) = {
            part.id
            for case in CASES[row.name][:1]
            for part in ToolCallParser(row, OFFER).feed(case.text)
            if not isinstance(part, TextPart) and part.id is not None
        }
        if row.name.startswith("mistral"):
            assert len(call) == 9
            assert call.isalnum()
        else:
            assert call.startswith("call_")
