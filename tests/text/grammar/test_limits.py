"""The limits: what is beyond them is refused by name, and the estimates are what they say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cortex.errors import BadRequest
from cortex.text.grammar import limits
from cortex.text.grammar.limits import (
    check_lark,
    check_pattern,
    check_schema,
    expansion,
    unsupported_keywords,
)


def nested(depth: int) -> dict[str, Any]:
    """A schema of *depth* levels of JSON."""
    schema: dict[str, Any] = {"type": "integer"}
    while depth > 1:
        schema = {"items": schema}
        depth -= 1
    return schema


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [
        ("", 0),
        ("abc", 3),
        ("a|bc", 3),
        ("a*b+c?", 3),
        ("^ab$", 2),
        ("a{5}", 5),
        ("a{2,5}", 5),
        ("a{3,}", 3),
        ("a{0}", 1),
        ("ab{4}", 5),
        ("(ab){4}", 8),
        ("(a{3}b){4}c", 17),
        ("((a{2}){3}){4}", 24),
        (r"\d{4}-\d{2}", 7),
        (r"\p{Lu}{3}", 3),
        (r"\x{41}{2}\{3\}", 5),
        ("[a-z]{3}", 3),
        (r"[^\]{9}]{2}", 2),
        ("[]a]{2}", 2),
        ("(?:ab){2}", 6),  # the group's own characters are counted, too
        ("a)b{2}", 3),
        ("(a{2}", 2),
    ],
)
def test_expansion_counts_what_is_written_out(pattern: str, characters: int) -> None:
    assert expansion(pattern) == characters


@pytest.mark.parametrize(
    "pattern",
    [
        "(a{1,1000}b{1,1000}){1,1000}",
        "((((a{0,100}){0,100}){0,100}){0,100}){0,100}",
        "a{10001}",
        "a{99999999999999999999999999}",
        "(a{1000}){1000}" * 900,
        "x" * (limits.MAX_PATTERN + 1),
    ],
    ids=range(6),
)
def test_giant_repetitions_are_refused(pattern: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_pattern(pattern, "here")
    assert (caught.value.param, caught.value.error_code) == ("here", limits.TOO_COMPLEX)
    with pytest.raises(BadRequest):
        check_schema({"items": {"pattern": pattern}}, "here")
    with pytest.raises(BadRequest):
        check_schema({"patternProperties": {pattern: {}}}, "here")
    if len(pattern) < limits.MAX_PATTERN:
        with pytest.raises(BadRequest):
            check_lark(f"start: A\nA: /{pattern}/", "here")


def test_usual_patterns_pass() -> None:
    for pattern in (r"[a-z]{1,5000}", r"^\d{3}-\d{4}$", r"(\w+\s){1,100}", "a" * 5000):
        check_pattern(pattern, "here")
    check_lark('start: A ":" B\nA: /[a-z]{1,20}/\nB: /x\\/y/', "here")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (nested(200), "deeper"),
        (nested(limits.MAX_DEPTH + 1), "deeper"),
        ({"enum": list(range(10_000))}, "10000 enum"),
        (
            {"properties": {"a": {"enum": list(range(2501))}, "b": {"enum": list(range(2500))}}},
            "5001 enum",
        ),
        ({"properties": {str(n): {} for n in range(2001)}}, "2001 properties"),
        ({"description": "x" * (limits.MAX_TEXT + 1)}, "longer"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_large_schemas_are_refused_with_their_measure(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        check_schema(schema, "response_format")
    assert caught.value.param == "response_format"
    assert caught.value.error_code == limits.TOO_COMPLEX


def test_schemas_at_the_limit_pass() -> None:
    check_schema(nested(limits.MAX_DEPTH), "p")
    check_schema({"enum": list(range(limits.MAX_ENUM))}, "p")
    check_schema({"properties": {str(n): {} for n in range(limits.MAX_PROPERTIES)}}, "p")
    check_schema({"properties": {"enum": {"type": "string"}, "pattern": {}, "properties": {}}}, "p")


def test_a_long_lark_grammar_is_refused() -> None:
    with pytest.raises(BadRequest, match="KiB"):
        check_lark("x" * (limits.MAX_TEXT + 1), "p")


def test_unsupported_keywords_are_found_where_schemas_stand() -> None:
    schema = {
        "not": {},
        "properties": {"if": {"uniqueItems": True}, "contains": {"type": "string"}},
        "items": [{"anyOf": [{"then": {}}]}],
        "additionalProperties": {"else": {}},
        "$defs": {"x": {"propertyNames": {}}},
        "enum": [{"dependencies": 1}],
        "const": {"minContains": 1},
    }
    found = unsupported_keywords(schema)
    assert found == ["else", "not", "propertyNames", "then", "uniqueItems"]
    assert unsupported_keywords(True) == []


def test_the_tokens_of_a_pattern_are_all_of_it() -> None:
    for pattern in (r"a\p{L}[x\]]{2,3}(?:b|\n)", "{", "}", "[", "\\", "(", "a{,3}", "{1,2}{3}"):
        tokens = [m[0] for m in limits._PATTERN_TOKEN.finditer(pattern)]
        assert "".join(tokens) == pattern
        assert expansion(pattern) >= 0
    assert re.compile(limits._PATTERN_TOKEN.pattern, re.VERBOSE)
