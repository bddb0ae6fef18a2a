from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import BadRequest
from cortex.translate.anthropic_version import NEWEST, OLDEST, check_version

CITED = {"type": "text", "text": "x", "citations": [{"type": "char_location"}]}
DOCUMENT = {"type": "document", "source": {"type": "text", "data": "x"}}


def body(role, block, **fields):
    return {"messages": [{"role": role, "content": ["odd", block]}], **fields}


@pytest.mark.parametrize(
    ("given_body", "message"),
    [
        ({"temperature": 1}, "temperature: Extra inputs are not permitted"),
        ({"top_p": 1}, "top_p: Extra inputs are not permitted"),
        ({"top_k": 5}, "top_k: Extra inputs are not permitted"),
        (
            body("user", CITED),
            "messages.0.content.1.citations: Extra inputs are not permitted",
        ),
        (
            body("assistant", DOCUMENT),
            "messages.0.content.1: document blocks are not permitted in assistant turns",
        ),
    ],
)
def test_the_newest_version_has_dropped_some_things(given_body, message):
    with pytest.raises(BadRequest) as caught:
        check_version(NEWEST, given_body)
    assert caught.value.message == message
    for version in (OLDEST, None):
        check_version(version, given_body)


@pytest.mark.parametrize(
    "given_body",
    [
        {},
        {"temperature": None},
        body("user", DOCUMENT),
        body("assistant", CITED),
        body("user", {**CITED, "citations": []}),
    ],
)
def test_the_rest_is_as_it_was(given_body):
    check_version(NEWEST, given_body)


@pytest.mark.parametrize("version", ["", "2024-01-01", "latest", "x\r\ny: z"])
def test_a_version_that_is_none_is_named(version):
    with pytest.raises(BadRequest) as caught:
        check_version(version, {})
    assert caught.value.message.startswith("anthropic-version: ")
    assert caught.value.message.isprintable()


anything = st.recursive(
    st.none() | st.sampled_from(["user", "assistant", "text", "document"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "citations"]), inner)
    ),
)


@given(anything)
def test_whatever_the_shape_it_is_looked_at_without_harm(messages):
    try:
        check_version(NEWEST, {"messages": messages})
    except BadRequest as exc:
        path = exc.message.partition(":")[0]
        assert path.startswith("messages.")
