"""Telling a cancellation from a failure."""

from __future__ import annotations

import trio


def is_cancellation(error: BaseException | None) -> bool:
    """Whether *error* is trio's cancellation, alone or as a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
