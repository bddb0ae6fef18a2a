"""Asking an engine, and running it dry."""

from __future__ import annotations

from collections.abc import Iterable

from cortex.engine.engine import Engine
from cortex.engine.request import Event, Pooling, Request, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


def ask(
    name: str,
    prompt: Iterable[int],
    *,
    max_tokens: int = 8,
    sampling: SamplingParams = GREEDY,
    **options: object,
) -> Request:
    return Request(name, tuple(prompt), sampling, max_tokens, **options)


def embed(name: str, prompt: Iterable[int], pooling: Pooling, **options: object) -> Request:
    return Request(name, tuple(prompt), GREEDY, max_tokens=1, pooling=pooling, **options)


def drain(engine: Engine, limit: int = 5000) -> dict[str, list[Event]]:
    """Step until nothing is left; the events by request. The blocks are checked on every step."""
    events: dict[str, list[Event]] = {}
    for _ in range(limit):
        if not engine.has_work:
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
        engine.scheduler.pool.check_integrity()
    raise AssertionError(f"work is left after {limit} steps")


def tokens_of(events: Iterable[Event]) -> list[int]:
    return [event.token for event in events]
