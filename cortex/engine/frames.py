"""What an exception keeps alive: the frames that it went through, and every tensor in them."""

from __future__ import annotations

import traceback


def let_go_of_tensors(error: BaseException) -> None:
    """Empty the frames that *error* and its causes keep alive; where it happened stays known."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
