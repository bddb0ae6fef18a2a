"""Memory for weights, in pages as large as the kernel gives."""

from __future__ import annotations

import contextlib
import mmap

import torch

_REGION = 64 << 20  # bytes; many weights share one, so that their ends waste few large pages
_ALIGNMENT = 64  # bytes; a cache line, an AVX-512 register


class Arena:
    """Zeroed pieces of anonymous regions; a region lives as long as the last of its pieces.

    With 2 MiB pages a product streams its weights up to half as fast again: a 4 KiB page ends
    before the processor's prefetching has got going. The kernel is asked for them, and gives 4 KiB
    pages where it has no others.
    """

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None
        self._used = 0

    def take(self, size: int) -> torch.Tensor:
        """``(size,)`` uint8, all zero. MemoryError where there is no more."""
        if self._region is None or self._used + size > len(self._region):
            self._region, self._used = _region(max(size, _REGION)), 0
        piece = torch.frombuffer(self._region, dtype=torch.uint8, count=size, offset=self._used)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return piece


def _region(size: int) -> mmap.mmap:
    try:
        # Shared pages, the default, are never large.
        region = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size >> 20} MiB of weights") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE)
    return region
