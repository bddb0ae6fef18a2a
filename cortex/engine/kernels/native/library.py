"""The compiled kernels as functions: pointers are ints, sizes are ints, nothing is checked."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

_SIZE = c_int64
_POINTER = c_void_p

# Arguments of each function, in the order of its declaration in C.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "level": (_SIZE, []),
    "packed_bytes": (_SIZE, [_SIZE] * 3),
    "pack": (None, [_SIZE] * 3 + [_POINTER] * 2 + [_SIZE]),
    "embed": (_SIZE, [_SIZE] * 3 + [_POINTER] * 2 + [_SIZE, _POINTER] + [_SIZE] * 2),
    "dense_bytes": (_SIZE, [_SIZE] * 2),
    "dense_pack": (None, [_SIZE] * 2 + [_POINTER] * 2 + [_SIZE]),
    "product_memory": (_SIZE, [_SIZE] * 3),
    "product": (None, [_SIZE] * 3 + [_POINTER] * 4 + [_SIZE] * 2 + [_POINTER, _SIZE]),
    "norm": (None, [_POINTER] * 5 + [_SIZE] * 2 + [c_float] + [_SIZE] * 2),
    "silu_mul": (None, [_POINTER] * 2 + [_SIZE] * 4),
    "place": (None, [_POINTER] * 5 + [c_float] + [_POINTER] * 4 + [_SIZE] * 6),
    "attend_memory": (_SIZE, [_SIZE] * 6),
    "attend": (
        None,
        [_POINTER] * 7 + [_SIZE] * 9 + [c_float, _SIZE, _POINTER, _SIZE],
    ),
}


class Library:
    """One function for each of `_SIGNATURES`. OSError where *path* is no library of ours.

    A call lets go of the interpreter's lock while it runs.
    """

    level: Any
    packed_bytes: Any
    pack: Any
    embed: Any
    dense_bytes: Any
    dense_pack: Any
    product_memory: Any
    product: Any
    norm: Any
    silu_mul: Any
    place: Any
    attend_memory: Any
    attend: Any

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(loaded, f"cortex_{name}")
            except AttributeError as error:
                raise OSError(f"{path}: {error}") from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
