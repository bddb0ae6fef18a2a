"""Keeps control tokens in users' text from becoming control tokens.

A chat template joins users' strings with control tokens of its own; once they are joined nothing
tells ``<|im_end|>`` from a tool's output apart from the template's. So, before rendering, each
control token within a user's string is put between two Unicode noncharacters, which no template
looks at, trims or escapes (`Marker.mark`); after rendering, what stands between them is encoded
as plain text, and the rest as usual (`encode_marked`). Strings without control tokens, which are
nearly all, are not touched, so that what is rendered is what Hugging Face's renderer gives.

A string that begins or ends with a part of a control token gets a single mark there: next to
another string it must not make a whole one. Where a template cuts a marked string, a mark may be
left alone: it is dropped, after having kept its two sides from joining.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from cortex.text.tokenizer import GUARD, Tokenizer

OPEN, CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_RESERVED = re.compile(f"[{OPEN}{CLOSE}{GUARD}]")


class Marker:
    """Marks users' strings for one tokenizer."""

    def __init__(self, control: Collection[str], pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        heads = {token[:n] for token in control for n in range(1, len(token))}
        tails = {token[n:] for token in control for n in range(1, len(token))}
        self._longest = max(map(len, control), default=0)
        self._heads, self._tails = heads, tails

    def mark(self, value: Any, keep: re.Pattern[str] | None = None) -> Any:
        """*value* (JSON) with its strings marked, keys too; what *keep* matches stays as it is."""
        if isinstance(value, str):
            return self._string(value, keep)
        if isinstance(value, dict):
            return {self._key(key): self.mark(item, keep) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item, keep) for item in value]
        return value

    def _key(self, key: Any) -> Any:
        return self._wrap(key, None) if isinstance(key, str) else key

    def _wrap(self, text: str, keep: re.Pattern[str] | None) -> str:
        text = _RESERVED.sub("", text)
        return self._pattern.sub(
            lambda match: (
                match[0] if keep and keep.fullmatch(match[0]) else f"{OPEN}{match[0]}{CLOSE}"
            ),
            text,
        )

    def _string(self, text: str, keep: re.Pattern[str] | None) -> str:
        text = self._wrap(text, keep)
        limit = min(self._longest, len(text) + 1)
        if any(text[:n] in self._tails for n in range(1, limit)):
            text = CLOSE + text
        if any(text[-n:] in self._heads for n in range(1, limit)):
            text += CLOSE
        return text


def strip_marks(rendered: str) -> str:
    """*rendered* as it would be had nothing been marked."""
    return _MARKS.sub("", rendered)


def encode_marked(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """The ids of *rendered*: control tokens where the template wrote them, text where users did.

    Cut at the template's control tokens, where the tokenizer cuts as well, so that marks change
    nothing but what they are for: between two control tokens text is encoded in one piece.
    """
    if not _MARKS.search(rendered):
        return tokenizer.encode(rendered, special=True)
    scanner = re.compile(
        f"{OPEN}(?:{tokenizer.control_pattern.pattern}){CLOSE}?"
        f"|({tokenizer.control_pattern.pattern})"
    )
    ids: list[int] = []
    previous = ""  # the template's control token before the stretch that begins at `begin`
    begin = pending = 0  # what is from `pending` to `begin` can be encoded as usual
    ends = [match.span(1) for match in scanner.finditer(rendered) if match[1] is not None]
    for start, end in [*ends, (len(rendered), len(rendered))]:
        stretch, following = rendered[begin:start], rendered[start:end]
        if _MARKS.search(stretch):
            if pending < begin:
                ids += tokenizer.encode(rendered[pending:begin], special=True)
            ids += _encode_text(tokenizer, stretch, previous, following)
            pending = start
        begin, previous = end, following
    if pending < len(rendered):
        ids += tokenizer.encode(rendered[pending:], special=True)
    return ids


def _encode_text(tokenizer: Tokenizer, text: str, previous: str, following: str) -> list[int]:
    """The ids of a marked *text* between two control tokens ("" at the ends of the prompt)."""
    text = _MARKS.sub("", text)
    if previous in tokenizer.eats_right:
        text = text.lstrip()
    if following in tokenizer.eats_left:
        text = text.rstrip()
    if not text:
        return []
    return tokenizer.encode_plain(text) if previous else tokenizer.encode(text, special=False)
