"""How many tokens a prompt may have, before anybody has counted them."""

from __future__ import annotations

from typing import Any

# Of English text with the vocabularies of today's models; other languages and code have fewer
# characters to a token. It is corrected when the model has counted, so that it need not be right.
CHARACTERS_PER_TOKEN = 4
IMAGE_TOKENS = 1000  # a picture, whatever its size in bytes
_PROMPT = ("messages", "prompt", "input", "tools")


def prompt_tokens(body: dict[str, Any]) -> int:
    """An estimate for the upstream *body* of a request; at least 1."""
    characters = sum(_characters(body[name]) for name in _PROMPT if name in body)
    return max(1, characters // CHARACTERS_PER_TOKEN)


def _characters(value: Any) -> int:
    """Without recursion: what a client has sent may be nested deeply."""
    count, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            picture = item.startswith("data:")
            count += IMAGE_TOKENS * CHARACTERS_PER_TOKEN if picture else len(item)
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
        elif type(item) is int:  # a prompt of token ids
            count += CHARACTERS_PER_TOKEN
    return count
