"""Embedding requests as they are read, and vectors as they are packed."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.wire.converter import structure
from cortex.wire.embeddings import MAX_INPUTS, EmbeddingRequest, packed, unpacked


def read(**fields: Any) -> EmbeddingRequest:
    return structure({"model": "m", **fields}, EmbeddingRequest)


@pytest.mark.parametrize(
    ("given_input", "inputs", "several"),
    [
        ("a", ("a",), False),
        (["a", "b"], ("a", "b"), True),
        ([1, 2], ((1, 2),), False),
        ([[1], [2, 3]], ((1,), (2, 3)), True),
    ],
)
def test_each_form_of_input_is_a_list_of_inputs(
    given_input: Any, inputs: tuple[Any, ...], several: bool
) -> None:
    asked = read(input=given_input)
    assert (asked.inputs, asked.several) == (inputs, several)


def test_as_many_inputs_as_openai_takes() -> None:
    assert len(read(input=["a"] * MAX_INPUTS).inputs) == MAX_INPUTS
    assert read(input=[1] * (MAX_INPUTS + 1)).inputs  # one input of many tokens
    with pytest.raises(BadRequest, match="2049"):
        read(input=["a"] * (MAX_INPUTS + 1))


@pytest.mark.parametrize("bad", ["", [], [""], [[]], [[1], []], None, 1, {}, ["a", 1], [1.5]])
def test_what_is_no_input_is_refused(bad: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        read(input=bad)
    assert caught.value.param is not None
    assert caught.value.param.startswith("input")


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_packed_is_little_endian_and_comes_back(numbers: list[float]) -> None:
    import base64

    text = packed(array("f", numbers))
    assert base64.b64decode(text) == struct.pack(f"<{len(numbers)}f", *numbers)
    assert unpacked(text).tolist() == numbers


@pytest.mark.parametrize("bad", ["%", "AAA=", "AAAAA", "é"])
def test_what_is_not_packed_is_told(bad: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpacked(bad)
