"""What pages of other origins are told: the rules alone."""

from __future__ import annotations

import pytest

from cortex.service.cors import Cors

PAGE = "https://chat.example.org"
ASKS = {"origin": PAGE, "access-control-request-method": "POST"}


def cors(*origins: str) -> Cors:
    return Cors(lambda: origins)


def test_it_is_off_without_origins():
    assert not cors().on
    assert cors(PAGE).on


def test_a_preflight_learns_the_methods_and_the_headers_that_it_asked_for():
    asked = ASKS | {"access-control-request-headers": "Authorization, x-stainless-os,x-evil"}
    assert cors(PAGE).preflight(asked, {"POST", "GET"}) == {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, x-stainless-os",
        "access-control-max-age": "600",
    }


@pytest.mark.parametrize(
    "asked",
    [
        {"origin": PAGE},  # an OPTIONS that is no preflight
        {"access-control-request-method": "POST"},
        *(
            ASKS | {"origin": origin}
            for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", f"{PAGE}:8443")
        ),
    ],
)
def test_nobody_else_gets_leave(asked):
    assert cors(PAGE).preflight(asked, {"POST"}) == {}


def test_a_header_that_a_client_of_ours_would_not_send_is_never_granted():
    asked = ASKS | {"access-control-request-headers": "cookie, x-forwarded-for, *"}
    assert "access-control-allow-headers" not in cors(PAGE).preflight(asked, {"POST"})


def test_an_answer_names_the_origin_and_what_may_be_read():
    told = cors("https://other.example", PAGE).headers(
        {"origin": PAGE}, {"x-ratelimit-limit-requests": "1", "allow": "GET"}
    )
    assert told == {
        "vary": "origin",
        "access-control-allow-origin": PAGE,
        "access-control-expose-headers": (
            "request-id, retry-after, x-request-id, x-should-retry, x-ratelimit-limit-requests"
        ),
    }


@pytest.mark.parametrize("asked", [{}, {"origin": "https://evil.example"}, {"origin": "null"}])
def test_others_are_told_only_that_answers_differ(asked):
    assert cors(PAGE).headers(asked, {}) == {"vary": "origin"}
