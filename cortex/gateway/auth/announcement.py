"""Rate limits told to clients in response headers, in each dialect's words."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable

import attrs

from cortex.gateway.auth import usage
from cortex.gateway.auth.caller import INFERENCE
from cortex.gateway.auth.limiter import Limiter
from cortex.gateway.auth.limits import Bucket
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer


def announcing(route: Route, limiter: Limiter) -> Route:
    """*route*, whose answers tell callers with rate limits what is left of them."""
    if route.scope != INFERENCE or route.method != "POST":
        return route
    words = _anthropic if "/v1/messages" in route.path else _openai
    handler = route.handler

    async def announced(request: HttpRequest) -> Answer | StreamAnswer:
        answer = await handler(request)
        caller = request.caller
        allowance = limiter.of((caller and caller.key_id) or usage.NO_KEY)
        if allowance is None:
            return answer
        now = limiter.clock()
        headers = dict(answer.headers)
        for what, bucket in (("requests", allowance.requests), ("tokens", allowance.tokens)):
            if bucket is not None:
                words(headers, what, bucket, now, limiter.wall)
        return attrs.evolve(answer, headers=headers)

    return attrs.evolve(route, handler=announced)


def _openai(
    headers: dict[str, str], what: str, bucket: Bucket, now: float, wall: Callable[[], float]
) -> None:
    headers[f"x-ratelimit-limit-{what}"] = f"{bucket.capacity:.0f}"
    headers[f"x-ratelimit-remaining-{what}"] = _whole(bucket.remaining(now))
    headers[f"x-ratelimit-reset-{what}"] = _duration(bucket.full_in(now))


def _anthropic(
    headers: dict[str, str], what: str, bucket: Bucket, now: float, wall: Callable[[], float]
) -> None:
    reset = datetime.datetime.fromtimestamp(wall() + bucket.full_in(now), datetime.UTC)
    headers[f"anthropic-ratelimit-{what}-limit"] = f"{bucket.capacity:.0f}"
    headers[f"anthropic-ratelimit-{what}-remaining"] = _whole(bucket.remaining(now))
    headers[f"anthropic-ratelimit-{what}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")


def _whole(level: float) -> str:
    return str(max(0, math.floor(level)))


def _duration(seconds: float) -> str:
    """``120ms``, ``6s``, ``1m30s``: as OpenAI's own service writes it."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
