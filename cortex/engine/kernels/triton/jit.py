"""triton's decorator, which is untyped, with a type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """Compile *function* for a GPU when it is launched: ``function[grid](*arguments)``."""
    return triton.jit(function)
