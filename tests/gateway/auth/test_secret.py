from __future__ import annotations

import hashlib
import re

import pytest

from cortex.errors import Unauthorized
from cortex.gateway.auth.secret import digest, generate, presented


def test_a_key_has_an_id_to_be_named_by_and_a_long_secret():
    made = [generate() for _ in range(50)]
    for key_id, key in made:
        assert re.fullmatch(rf"ctx-{key_id}-[A-Za-z0-9_-]{{32}}", key)
    assert len({key_id for key_id, _ in made}) == 50


def test_what_is_stored_is_the_hash_of_the_whole():
    _, key = generate()
    assert digest(key) == hashlib.sha256(key.encode()).digest()


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer k"}, "k"),
        ({"authorization": "bearer k"}, "k"),
        ({"authorization": "BEARER  k"}, "k"),
        ({"x-api-key": "k"}, "k"),
        ({"x-api-key": "k", "authorization": "Bearer k"}, "k"),
        ({"x-api-key": "k", "authorization": "Bearer other"}, "k"),
        ({"x-api-key": "k", "authorization": "Basic b3RoZXI="}, "k"),
        ({"x-api-key": "", "authorization": "Bearer k"}, "k"),
    ],
)
def test_both_headers_are_read_and_x_api_key_comes_first(headers, key):
    assert presented(headers) == key


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic dTpw"},
        {"authorization": "ctx-1-2"},
        {"authorization": "Bearer a, Bearer b"},  # two headers, joined
        {"authorization": "Bearer schl\xfcssel"},
        {"authorization": "Bearer a\tb"},
        {"authorization": "Bearer " + "k" * 600},
        {"x-api-key": "a, b"},
        {"x-api-key": "k" * (1 << 20)},
    ],
)
def test_what_can_be_no_key_is_refused(headers):
    with pytest.raises(Unauthorized) as refused:
        presented(headers)
    assert len(refused.value.message) < 100  # it does not repeat what was sent
