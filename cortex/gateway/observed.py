"""What passes by in an answer and is worth measuring: usage, timing, how it ended."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.define
class Observed:
    """Filled while an answer passes. Counts are tokens, None until the neuron told them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    timings: dict[str, Any] | None = None
    finish_reason: str | None = None

    def take_usage(self, usage: Any) -> None:
        """Note a ``usage`` object; anything else is ignored."""
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens) or 0

    def take_timings(self, timings: Any) -> None:
        if isinstance(timings, dict):
            self.timings = timings

    def take_finish(self, choices: Any) -> None:
        """Note the finish reason of the last choice that has one."""
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if isinstance(reason, str) and reason:  # some say "" where others say null
                self.finish_reason = reason

    def milliseconds(self, name: str) -> float | None:
        """A row of ``timings``, when it is there and a number."""
        value = (self.timings or {}).get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if value >= 0 else None


def _count(value: Any, otherwise: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise
