"""The names of the files that one GGUF model is split into. No torch."""

from __future__ import annotations

import re

# Counted from 1 in names; ``split.no`` within the files counts from 0.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def stem_of(name: str) -> str:
    """*name* without its extension, and without saying which part it is."""
    found = _PART.fullmatch(name)
    return found["stem"] if found else name.removesuffix(".gguf")


def part_names(name: str) -> list[str]:
    """All parts, in order, of what the file *name* is one of; [name] where it is no part."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    count = int(found["count"])
    return [f"{found['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
