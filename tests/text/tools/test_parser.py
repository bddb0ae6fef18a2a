"""Tool calls out of streamed text: the same wherever it is cut, and nothing lost."""

from __future__ import annotations

import json
from itertools import count, pairwise

import pytest
from fakes.chat_templates import LLAMA3, QWEN3

from cortex.text.tools.formats import FORMATS, find_format
from cortex.text.tools.parser import Part, TextPart, ToolCallParser

HERMES = FORMATS[0]
ARGUMENTS = '{"q": "a \\"b\\" } </tool_call> \\\\", "n": [1, {"é": null}]}'
CALL = f'<tool_call>\n{{"name": "find", "arguments": {ARGUMENTS}}}\n</tool_call>'
TEXTS = {
    CALL: ("", [("find", ARGUMENTS)]),
    f"a {CALL}\n{CALL} b": ("a \n b", [("find", ARGUMENTS), ("find", ARGUMENTS)]),
    '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>': ("", [("f", '{"a": 1}')]),
    "x <tool_call>{no} </tool_call> y": ("x <tool_call>{no} </tool_call> y", []),
    '<tool_call>{"name": "f", "arg': ('<tool_call>{"name": "f", "arg', []),
    f"<tool_<tool_call>{CALL}": ("<tool_<tool_call>", [("find", ARGUMENTS)]),
}


def parsed(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    numbers = count()
    parser = ToolCallParser(HERMES, lambda: f"call_{next(numbers)}")
    parts: list[Part] = [part for piece in pieces for part in parser.feed(piece)]
    parts += parser.finish()
    calls: list[list[str]] = []
    for part in parts:
        if not isinstance(part, TextPart):
            if part.name is not None:
                assert (part.index, part.id) == (len(calls), f"call_{len(calls)}")
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    return text, [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(("text", "expected"), TEXTS.items())
def test_every_cut_gives_what_the_whole_gives(text, expected):
    assert parsed([text]) == expected
    assert parsed(list(text)) == expected
    for n in range(len(text)):
        assert parsed([text[:n], text[n:]]) == expected, n


def test_a_call_cut_off_keeps_what_came_of_it():
    whole = json.loads(ARGUMENTS)
    lengths = []
    for n in range(len(CALL)):
        text, calls = parsed([CALL[:n]])
        assert (text == "") == bool(calls) or n == 0
        if not calls:
            assert text == CALL[:n]
            continue
        assert ARGUMENTS.startswith(calls[0][1])
        lengths.append(len(calls[0][1]))
    assert all(shorter <= longer for shorter, longer in pairwise(lengths))
    assert json.loads(ARGUMENTS[: lengths[-1]]) == whole


def test_the_format_is_known_by_the_template():
    assert find_format(QWEN3) is HERMES
    assert find_format(LLAMA3) is None
    assert find_format("") is None
