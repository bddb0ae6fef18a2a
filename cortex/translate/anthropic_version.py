"""What a version of Anthropic's API refuses, for who wants to know before a client goes there.

Unless the operator asks for strictness none of this is refused: other fields than a version's own
are what people send by habit, and a model here takes them (`reference/api.md` 0.2, 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cortex.errors import BadRequest, clip

OLDEST = "2023-06-01"  # what a request without a version means
NEWEST = "2026-10-21"
VERSIONS = (OLDEST, NEWEST)
_REMOVED = ("temperature", "top_p", "top_k")  # by `NEWEST`


def check_version(version: str | None, body: dict[str, Any]) -> None:
    """`BadRequest` where *version* (the header, None without one) is none, or does not know
    something in *body*. Of *body*, whatever its shape, only what it is about is looked at."""
    if version not in (None, *VERSIONS):
        raise BadRequest(
            f"anthropic-version: {clip(version, 40)} is not a version that is known here; "
            f"there are {' and '.join(VERSIONS)}",
            param="anthropic-version",
        )
    if version != NEWEST:
        return
    for name in _REMOVED:
        if body.get(name) is not None:
            raise _extra(name)
    for path, role, block in _blocks(body.get("messages")):
        if role == "assistant" and block.get("type") == "document":
            raise _extra(path, "document blocks are not permitted in assistant turns")
        if role == "user" and block.get("type") == "text" and block.get("citations"):
            raise _extra(f"{path}.citations")


def _blocks(messages: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The blocks of *messages* with their paths and their turns' roles."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, block in enumerate(content if isinstance(content, list) else ()):
            if isinstance(block, dict):
                yield f"messages.{index}.content.{number}", message.get("role"), block


def _extra(path: str, text: str = "Extra inputs are not permitted") -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path)
