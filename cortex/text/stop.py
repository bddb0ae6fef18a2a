"""Stop strings in text that comes in pieces: found wherever the pieces are cut, never half sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def held_from(text: str, wanted: Collection[str]) -> int:
    """The first index of *text* from which its rest is the beginning (not all) of one of *wanted*.

    ``len(text)`` where there is none. Cost: the longest of *wanted*, not *text*.
    """
    first = len(text)
    for one in wanted:
        start = text.find(one[0], max(0, len(text) - len(one) + 1), first)
        while start >= 0:
            if one.startswith(text[start:]):
                first = start
                break
            start = text.find(one[0], start + 1, first)
    return first


class StopMatcher:
    """Finds the match that begins first; of those that begin together, the longest.

    This is the match that a search of the whole text finds, so that cutting makes no difference: a
    match is not told while a longer or an earlier one may still come of what has been seen.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        longest_first = sorted(self._stops, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._buffer = ""
        self.matched: str | None = None  # the stop string found, after `feed` or `flush`

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to send, and the stop string once it is found: then it is over."""
        if self.matched is not None:
            return "", self.matched
        if not self._stops:
            return text, None
        self._buffer += text
        match = self._pattern.search(self._buffer)
        held = held_from(self._buffer, self._stops)
        if match is not None and match.start() < held:
            return self._finish(match), self.matched
        safe, self._buffer = self._buffer[:held], self._buffer[held:]
        return safe, None

    def flush(self) -> str:
        """The text held back, when no more comes. `matched` tells of a match within it."""
        if self.matched is not None:
            return ""
        match = self._pattern.search(self._buffer)
        if match is not None:
            return self._finish(match)
        text, self._buffer = self._buffer, ""
        return text

    def _finish(self, match: re.Match[str]) -> str:
        self.matched = match[0]
        safe, self._buffer = self._buffer[: match.start()], ""
        return safe
