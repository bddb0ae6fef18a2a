from __future__ import annotations

import pytest

from cortex.gateway.auth.announcement import _duration, announcing
from cortex.gateway.auth.caller import Caller
from cortex.gateway.auth.limiter import Limiter
from cortex.gateway.auth.limits import Limits
from cortex.service.http import Answer, HttpRequest, Route

NOON = 1795780800.0  # 2026-11-27 12:00 in UTC


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (5.2, "6s"), (59.5, "1m0s"), (90, "1m30s")],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    assert _duration(seconds) == text


async def hello(request: HttpRequest) -> Answer:
    return Answer(b"", headers={"kept": "yes"})


async def told(path: str, limits: Limits, **route) -> dict[str, str]:
    limiter = Limiter(clock=lambda: 0.0, wall=lambda: NOON)
    limiter.configure({"k": limits})
    allowance = limiter.of("k")
    if allowance is not None:
        limiter.admit(allowance, {"prompt": "x" * 400})
    request = HttpRequest("POST", path, {}, b"", {}, "r", caller=Caller("laptop", "k"))
    answer = await announcing(Route("POST", path, hello, **route), limiter).handler(request)
    return dict(answer.headers)


async def test_openai_is_told_what_is_left_and_how_long_until_all_is():
    assert await told("/v1/chat/completions", Limits(rpm=2, tpm=400)) == {
        "kept": "yes",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "400",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "15s",
    }


async def test_anthropic_is_told_when():
    assert await told("/anthropic/v1/messages", Limits(rpm=2)) == {
        "kept": "yes",
        "anthropic-ratelimit-requests-limit": "2",
        "anthropic-ratelimit-requests-remaining": "1",
        "anthropic-ratelimit-requests-reset": "2026-11-27T12:00:30Z",
    }


async def test_a_key_without_rates_is_told_nothing():
    for limits in (Limits(), Limits(budget=1000, period="day")):
        assert await told("/v1/chat/completions", limits) == {"kept": "yes"}


async def test_admin_routes_have_no_rates():
    assert await told("/fleet/models/load", Limits(rpm=2), scope="admin") == {"kept": "yes"}
