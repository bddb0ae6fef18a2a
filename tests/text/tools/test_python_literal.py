"""Literals read without evaluating anything, against Python's own reading of them."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.text.tools.python_literal import MAX_DEPTH, read_literal

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'\"\\", max_size=3), inner)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_python_and_json_literals_are_read_as_they_are_meant(value: Any) -> None:
    assert read_literal(repr(value)) == value
    assert read_literal(json.dumps(value)) == value
    assert read_literal(json.dumps(value, ensure_ascii=False)) == value


def as_json(value: Any) -> Any:
    """*value* with what JSON has for its tuples and keys."""
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {k if isinstance(k, str) else json.dumps(k): as_json(v) for k, v in value.items()}
    return value


@given(st.text("'\"\\nxu0a({[]}),: 1eTrue", max_size=12))
def test_what_is_read_is_what_python_reads(text: str) -> None:
    try:
        value = read_literal(text)
    except ValueError:
        return
    try:
        own = ast.literal_eval(text.strip().replace("true", "True"))
    except (ValueError, SyntaxError):
        return  # Python refuses more: a newline in a string, a number like 007
    assert value == as_json(own)


@pytest.mark.parametrize(
    "text",
    [
        *("", "f()", "a", "1 2", "[1", "{1}", "{'a' 1}", "'a", "'\\", "'\\x4'", "'\\ud800'"),
        *("'\\ud800\\u0041'", "'\\U99999999'", "1e999", "__import__('os')", "1+1", "-", "nan"),
        *("b'x'", "[" * 99 + "]" * 99),
    ],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_literal(text)


def test_nesting_is_bounded() -> None:
    assert read_literal("[" * MAX_DEPTH + "]" * MAX_DEPTH)
