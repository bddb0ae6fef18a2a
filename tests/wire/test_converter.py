from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.wire import limits
from cortex.wire.converter import FieldError, structure, unstructure

many = settings(max_examples=100, deadline=None)


@attrs.frozen
class Inner:
    n: int = attrs.field(validator=limits.at_least(0, 9))
    name: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.name == "both":
            raise FieldError("not with n", "n")
        if self.name == "whole":
            raise FieldError("the object is wrong")


@attrs.frozen
class Outer:
    inner: Inner
    items: tuple[Inner, ...] = ()
    ratio: float = 0.5
    flag: bool | None = None
    free: dict[str, Any] | None = None
    counts: dict[str, int] | None = None
    grid: tuple[tuple[int, ...], ...] = ()


def refusal(value):
    with pytest.raises(BadRequest) as caught:
        structure(value, Outer)
    return caught.value


@pytest.mark.parametrize(
    ("value", "param", "message", "code"),
    [
        ({"inner": {"n": "5"}}, "inner.n", "expected an integer, got a string", "invalid_type"),
        ({"inner": {"n": True}}, "inner.n", "expected an integer, got a boolean", "invalid_type"),
        ({"inner": {"n": 1.0}}, "inner.n", "expected an integer, got a number", "invalid_type"),
        ({"inner": {"n": None}}, "inner.n", "expected an integer, got null", "invalid_type"),
        ({"inner": {"n": 1, "name": 5}}, "inner.name", "expected a string", "invalid_type"),
        ({"inner": {"n": -1}}, "inner.n", "below minimum", "integer_below_min_value"),
        ({"inner": {"n": 10}}, "inner.n", "above maximum", "integer_above_max_value"),
        ({"inner": {}}, "inner.n", "required field missing", "missing_required_parameter"),
        ({}, "inner", "required field missing", "missing_required_parameter"),
        ({"inner": {"n": 1, "name": "both"}}, "inner.n", "not with n", "invalid_value"),
        ({"inner": {"n": 1, "name": "whole"}}, "inner", "the object is wrong", "invalid_value"),
        ({"inner": []}, "inner", "expected an object, got an array", "invalid_type"),
        ({"inner": {"n": 1}, "items": {}}, "items", "expected an array", "invalid_type"),
        ({"inner": {"n": 1}, "items": "ab"}, "items", "expected an array", "invalid_type"),
        ({"inner": {"n": 1}, "items": [{"n": 1}, {"n": "x"}]}, "items[1].n", "expected", None),
        ({"inner": {"n": 1}, "items": [5]}, "items[0]", "expected an object", "invalid_type"),
        ({"inner": {"n": 1}, "ratio": "x"}, "ratio", "expected a number", "invalid_type"),
        ({"inner": {"n": 1}, "ratio": True}, "ratio", "expected a number", "invalid_type"),
        ({"inner": {"n": 1}, "flag": 1}, "flag", "expected true or false", "invalid_type"),
        ({"inner": {"n": 1}, "free": []}, "free", "expected an object", "invalid_type"),
        ({"inner": {"n": 1}, "grid": [[1], [2, "x"]]}, "grid[1][1]", "an integer", "invalid_type"),
    ],
)
def test_refusals_name_the_path_the_reason_and_the_code(value, param, message, code):
    error = refusal(value)
    assert error.param == param
    assert error.message.startswith(f"{param}: ")
    assert message in error.message
    assert code is None or error.error_code == code


@pytest.mark.parametrize("value", [None, [], 5, "x"])
def test_what_is_no_object_is_refused_as_a_whole(value):
    error = refusal(value)
    assert error.param is None
    assert "expected an object" in error.message


def test_unknown_fields_are_ignored_and_numbers_may_be_whole():
    found = structure({"inner": {"n": 1, "new": 2}, "ratio": 1, "x": []}, Outer)
    assert found == Outer(Inner(1), ratio=1.0)
    assert type(found.ratio) is float


@many
@given(
    st.builds(
        Outer,
        st.builds(Inner, st.integers(0, 9), st.none() | st.just("x")),
        st.lists(st.builds(Inner, st.integers(0, 9)), max_size=3).map(tuple),
        st.floats(allow_nan=False),
        st.none() | st.booleans(),
        st.none() | st.dictionaries(st.text(), st.integers()),
        st.none() | st.dictionaries(st.text(), st.integers()),
        st.lists(st.lists(st.integers()).map(tuple)).map(tuple),
    )
)
def test_what_is_unstructured_is_structured_back(value):
    def listed(item):
        if isinstance(item, dict):
            return {key: listed(inner) for key, inner in item.items()}
        return [listed(inner) for inner in item] if isinstance(item, tuple | list) else item

    assert structure(listed(unstructure(value)), Outer) == value


names = st.sampled_from(["inner", "items", "n", "name", "ratio", "flag", "free", "counts", "grid"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)


@many
@given(anything)
def test_anything_is_taken_or_a_bad_request(value):
    try:
        found = structure(value, Outer)
    except BadRequest:
        return
    assert isinstance(found, Outer)
