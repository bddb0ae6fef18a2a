from __future__ import annotations

import pytest

from cortex.gateway.auth.scopes import scope_of


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", "public"),
        ("/health", "public"),
        ("/livez", "public"),
        ("/readyz", "public"),
        ("/version", "public"),
        ("/fleet", "admin"),
        ("/fleet/events", "admin"),
        ("/fleet/models/load", "admin"),
        ("/fleets", "inference"),
        ("/v1/models", "inference"),
        ("/v1/models/{id:path}", "inference"),
        ("/v1/chat/completions", "inference"),
        ("/anthropic/v1/messages", "inference"),
        ("/anything/new", "inference"),
    ],
)
def test_what_is_in_no_list_needs_a_key(path, scope):
    assert scope_of(path) == scope
