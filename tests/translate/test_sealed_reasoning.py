from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.translate.sealed_reasoning import seal, unseal

texts = st.text(st.characters(codec="utf-8"))


@given(texts)
def test_what_is_sealed_is_unsealed(text):
    sealed = seal(text)
    assert sealed.isascii()
    assert unseal(sealed) == text


@given(texts)
def test_what_is_not_ours_is_nothing(text):
    assert unseal(text) is None
    assert unseal("cx1." + text) is None


@given(texts, st.data())
def test_a_damaged_seal_is_nothing(text, data):
    sealed = seal(text)
    at = data.draw(st.integers(0, len(sealed) - 1))
    assert unseal(sealed[:at]) is None
    other = data.draw(st.sampled_from("aZ09-_"))
    damaged = sealed[:at] + other + sealed[at + 1 :]
    assert unseal(damaged) in (None, text)  # the last bits before the padding mean nothing


@pytest.mark.parametrize("body", ["W10=", "eyJ0ZXh0IjoxfQ==", "eyJ0ZXh0IjoieCJ9", "####"])
def test_a_seal_of_something_else_is_nothing(body):
    """An empty array, a number for the text, no checksum, no base64."""
    assert unseal("cx1." + body) is None
