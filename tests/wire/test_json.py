from __future__ import annotations

import json as stdlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.wire import json

many = settings(max_examples=100, deadline=None)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
scalars |= st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


@many
@given(values)
def test_what_is_written_is_read_back(value):
    assert json.loads(json.dumps(value)) == value


@many
@given(values)
def test_what_is_written_is_one_line_that_every_reader_takes(value):
    text = json.dumps(value)
    assert b"\n" not in text
    assert stdlib.loads(text) == value


@many
@given(st.binary(max_size=30))
def test_any_bytes_are_a_value_or_a_bad_request(data):
    try:
        json.loads(data)
    except BadRequest as error:
        assert error.error_code in ("invalid_json", "empty_body")  # noqa: PT017


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"NaN",
        b"[Infinity]",
        b"[1e999]",
        b'"\xff"',
        b'"\\ud800"',
        b'"a\nb"',
        b"\xef\xbb\xbf{}",
        b"{} x",
        b"{'a':1}",
        b'{"a":1,}',
    ],
)
def test_what_is_not_json_is_refused_as_such(body):
    with pytest.raises(BadRequest, match="not valid JSON"):
        json.loads(body)


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_body_is_named(body):
    with pytest.raises(BadRequest, match="empty") as caught:
        json.loads(body)
    assert caught.value.error_code == "empty_body"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_has_a_limit_and_the_limit_itself_is_legal(opening, closing):
    def nested(depth):
        middle = b"[]" if opening == b"[" else b"{}"
        return opening * (depth - 1) + middle + closing * (depth - 1)

    for space in (b"", b" " * json.COUNTED_BYTES):  # counted, or looked at
        assert json.loads(nested(json.MAX_DEPTH) + space) is not None
        with pytest.raises(BadRequest, match="nested"):
            json.loads(nested(json.MAX_DEPTH + 1) + space)


def test_many_shallow_containers_are_no_depth():
    assert len(json.loads(b"[" + b"[]," * 500 + b"[]]")) == 501
    assert len(json.loads(b"[" + b'{"a":[1,{"b":"c"},"[{[{"],"d":null},' * 500 + b"[]]")) == 501
    assert json.loads(b'"' + b"[{" * 5000 + b'"') == "[{" * 5000


def test_a_million_values_are_refused_before_they_are_parsed():
    with pytest.raises(BadRequest, match="too many"):
        json.loads(b"[" + b"1," * 1_000_000 + b"1]")


def test_the_last_of_duplicate_keys_wins():
    assert json.loads(b'{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize("body", [b"[]", b"5", b'"x"', b"null"])
def test_a_body_must_be_an_object(body):
    with pytest.raises(BadRequest, match="JSON object"):
        json.load_object(body)
    assert json.load_object(b'{"a":1}') == {"a": 1}
