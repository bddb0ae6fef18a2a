"""How fast an engine is, smoothed: tokens per second, measured while it is at work."""

from __future__ import annotations

import attrs

WEIGHT = 0.3  # of the newest measurement
WINDOW = 1.0  # seconds of work that one measurement of decoding covers at least


@attrs.define(eq=False)
class Speed:
    """``prefill`` is a single request's, ``decode`` all requests' together. None: not known yet."""

    prefill: float | None = None
    decode: float | None = None
    _tokens: int = 0
    _seconds: float = 0.0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """*tokens* of a prompt, without those from the cache, took *seconds* to the first token."""
        if tokens > 0 and seconds > 0:
            self.prefill = _smooth(self.prefill, tokens / seconds)

    def decoded(self, tokens: int, seconds: float) -> None:
        """A step brought *tokens*, *seconds* after the one before it. A stretch without any (of
        embeddings, or one long prefill) says nothing of decoding."""
        self._tokens += tokens
        self._seconds += seconds
        if self._seconds >= WINDOW:
            if self._tokens:
                self.decode = _smooth(self.decode, self._tokens / self._seconds)
            self._tokens, self._seconds = 0, 0.0


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
