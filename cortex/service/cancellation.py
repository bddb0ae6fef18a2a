"""Telling a cancellation from a failure, and one cancellation from another."""

from __future__ import annotations

import trio

DRAIN_OVER = "the drain time is over"  # why a server cancels what is left


def is_cancellation(error: BaseException | None) -> bool:
    """Whether *error* is trio's cancellation, alone or as a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def is_drain_over(error: BaseException | None) -> bool:
    """Whether *error* is a cancellation because the server has drained for long enough."""
    if not is_cancellation(error):
        return False
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return isinstance(error, trio.Cancelled) and error.reason == DRAIN_OVER
