"""Wishes as grammars: each is what it says, whatever characters it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import tokenizers

from cortex.errors import BadRequest
from cortex.text.grammar import source
from cortex.text.grammar.compiler import GrammarCompiler
from cortex.text.grammar.source import Source

TOKENIZER = tokenizers.byte_level()
EOS = TOKENIZER.eos_id
COMPILER = GrammarCompiler(TOKENIZER, [EOS])


def takes(wish: Source, text: str) -> bool:
    """Whether *text* as a whole is what was wished for; control tokens in it are such."""
    matcher = COMPILER.compile(wish).matcher()
    try:
        for token in TOKENIZER.encode(text, special=True):
            if matcher.ended:
                return False
            matcher.accept(token)
        if not matcher.ended:
            matcher.accept(EOS)
    except Exception:
        return False
    return True


AWKWARD = [
    "yes",
    "a|b",
    "(x",
    "é{2}",
    "tab\t\x01\x7f",
    'q"\\/',
    "\u2028😀",
    "^a$",
    "[",
    "two\nlines",
]


def test_a_choice_is_letter_for_letter() -> None:
    wish = source.choice(AWKWARD, "p")
    for text in AWKWARD:
        assert takes(wish, text)
        assert not takes(wish, text + "x")
    for text in ("b", "a", "ye", "YES", "éé", ""):
        assert not takes(wish, text)
    nested = source.choice(["yes", "yes please"], "p")
    assert takes(nested, "yes")
    assert takes(nested, "yes please")


def test_choices_have_their_limits() -> None:
    for values in (["x"] * 1001, ["x" * 40_000]):
        with pytest.raises(BadRequest) as caught:
            source.choice(values, "structured.choice")
        assert caught.value.param == "structured.choice"


def test_a_regex_is_matched_as_a_whole() -> None:
    wish = source.regex(r"^(/[a-z]+){1,3}$", "p")
    assert takes(wish, "/usr/bin")
    assert not takes(wish, "/usr/bin/x/y")
    assert not takes(wish, "usr")


def test_an_object_is_any_object_in_any_usual_layout() -> None:
    wish = source.json_object("p")
    value: Any = {"a": [1, 2.5e3, None, True], "é": {"b": 'x"y'}, "c": []}
    for layout in ({}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}):
        assert takes(wish, json.dumps(value, ensure_ascii=False, **layout))
    for text in ("[]", "1", '"a"', '{"a":}', '{"a": 1', '{"a":' + " " * 3 + "1}", '{"a":\n\n1}'):
        assert not takes(wish, text)


def test_a_schemas_own_wish_for_leniency_is_not_heard() -> None:
    lenient = {"x-guidance": {"whitespace_pattern": "a+"}, "type": "array", "items": {"const": 1}}
    wish = source.json_schema(lenient, "p")
    assert takes(wish, "[1, 1]")
    assert not takes(wish, "[1,aa1]")


def test_either_is_one_or_the_other() -> None:
    call = TOKENIZER.control["<tool_call>"]
    wish = source.either(source.json_object("a"), source.lark(f'start: <[{call}]> "x"', "b"))
    assert takes(wish, '{"a": 1}')
    assert takes(wish, "<tool_call>x")
    assert not takes(wish, '{"a": 1}<tool_call>x')
    assert not takes(wish, "x")


def test_after_text_is_text_and_then_perhaps_calls() -> None:
    call = TOKENIZER.control["<tool_call>"]
    wish = source.after_text(source.lark(f'start: <[{call}]> "x"', "b"))
    for text in ("", "Hello.\n\nYou.", "<tool_call>x", "Well…\n<tool_call>x"):
        assert takes(wish, text), text
    for text in ("<tool_call>y", "a<tool_call>x and more", "<think>"):
        assert not takes(wish, text), text
