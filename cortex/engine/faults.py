"""Which exceptions mean that the device itself is lost.

After a device fault every further call on the device fails too, and nothing in this process can
mend it. A full memory, a wrong shape or a bad value leave the device well.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

_CUDA_PREFIXES = (
    "CUDA error:",
    "CUDA driver error:",
    "cuDNN error:",
    "CUBLAS error:",
    "CUDA error when calling",
    "NCCL error",
)
_LIBRARY_STATUS = ("CUBLAS_STATUS_", "CUDNN_STATUS_", "CUSPARSE_STATUS_", "CUSOLVER_STATUS_")
_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_HARMLESS_STATUS = ("_NOT_SUPPORTED", "_BAD_PARAM", "_INVALID_VALUE")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """*error*, what caused it, what it happened during, and the members of groups; each once."""
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [e for e in (current.__cause__, current.__context__) if e is not None]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def is_out_of_memory(error: BaseException) -> bool:
    """Whether *error*, by itself, says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)


def _is_fault(error: BaseException) -> bool:
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        return True
    text = str(error)
    if any(status in text for status in _LIBRARY_STATUS):
        return not any(status in text for status in _HARMLESS_STATUS)
    return any(prefix in text for prefix in _CUDA_PREFIXES)


def is_device_fault(exc: BaseException) -> bool:
    """Whether *exc*, or anything in its cause, context or group, is a fault of the device."""
    return any(_is_fault(error) for error in _chain(exc))
