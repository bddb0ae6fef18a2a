"""Bare text made JSON by a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.text.tools.typed_value import value_json, value_types

ROOT: dict[str, Any] = {
    "$defs": {
        "Size": {"type": "integer"},
        "Loop": {"$ref": "#/$defs/Loop"},
        "a/b": {"enum": [1, "x", None, True, 2.5, [], {}]},
    }
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, "string"),
        ({"type": ["integer", "null"]}, "integer null"),
        ({"type": "string", "nullable": True}, "string null"),
        ({"$ref": "#/$defs/Size"}, "integer"),
        ({"$ref": "#/$defs/a~1b"}, "integer string null boolean number array object"),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Size"}]}, "string integer"),
        ({"oneOf": [{"type": "number"}, {"const": None}]}, "number null"),
        ({"allOf": [{"description": "d"}, {"type": "array"}]}, "array"),
        ({"properties": {}}, "object"),
        ({"items": {}}, "array"),
        ({"enum": ["a", "b"]}, "string"),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"$ref": "#/$defs/Loop"}, None),
        ({"$ref": "#/$defs/none"}, None),
        ({"$ref": "http://elsewhere"}, None),
        ({"type": "strange"}, None),
        ({"type": 3}, None),
        ({}, None),
        (True, None),
        (None, None),
    ],
)
def test_the_types_that_a_schema_allows(schema: Any, types: str | None) -> None:
    assert value_types(schema, ROOT) == (None if types is None else set(types.split()))


@pytest.mark.parametrize(
    ("text", "types", "written"),
    [
        ("5", "string", '"5"'),
        (" 5 ", "integer", "5"),
        ("5.0", "integer", "5"),
        ("5.5", "integer", '"5.5"'),
        ("5.5", "number", "5.5"),
        ("1e3", "number", "1e3"),
        ("NaN", "number", '"NaN"'),
        ("true", "number", '"true"'),
        ("five", "integer", '"five"'),
        ("5", "integer string", '"5"'),
        ("True", "boolean", "true"),
        ("yes", "boolean", '"yes"'),
        ("None", "null string", "null"),
        ("nil", "null string", '"nil"'),
        ('{"a": NaN}', "object", '"{\\"a\\": NaN}"'),
        ("{'a': None}", "object", '{"a": null}'),
        ('{"a": 1}', "string object", '{"a": 1}'),
        ("[1", "array", '"[1"'),
        ("{}", "array", '"{}"'),
        ("[" * 9999, "array", None),
        ("", "integer", '""'),
        ('"a"', None, '"a"'),
        ("a", None, '"a"'),
        (" [1] ", None, "[1]"),
    ],
)
def test_text_becomes_what_the_types_say(text: str, types: str | None, written: str | None) -> None:
    allowed = None if types is None else frozenset(types.split())
    expected = json.dumps(text) if written is None else written
    assert value_json(text, allowed) == expected


@given(
    st.text(),
    st.none() | st.frozensets(st.sampled_from(["string", "integer", "object", "null", "array"])),
)
def test_whatever_the_text_it_becomes_json(text: str, types: frozenset[str] | None) -> None:
    value = json.loads(value_json(text, types))
    if types == {"string"}:
        assert value == text
