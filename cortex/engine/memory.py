"""What a device's memory is at, as its allocator or the kernel tells, and how to give some back."""

from __future__ import annotations

import ctypes
import gc

import torch


def held(device: torch.device) -> int | None:
    """Bytes that this process holds on *device*; None where nobody tells.

    On a GPU what torch's allocator has handed out. On a CPU the private pages in RAM (RssAnon of
    /proc/self/status), those of the whole process: what other threads allocate counts too, and
    pages that were never touched do not.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) << 10
    except OSError:  # no Linux
        pass
    return None


def give_back() -> None:
    """Return the memory of dropped tensors to the device and to the system.

    torch keeps freed CUDA memory and glibc freed heap for the process, and then neither another
    model nor the system's own figures see it: after a load or an unload that is up to the size of
    the weights.
    """
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens where CUDA is not in use
    trim_heap()


def trim_heap() -> bool:
    """Give the free pages of the C heap to the system; False where the C library cannot."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc
        return False
    trim(0)
    return True


class Meter:
    """How much more is held on *device* than when this was made. The heap's free pages, which a
    load leaves behind too, are given back and do not count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._held()

    def growth(self) -> int | None:
        """Bytes, at least 0; None where nobody tells."""
        now = self._held()
        return None if now is None or self._before is None else max(now - self._before, 0)

    def _held(self) -> int | None:
        if self._device.type == "cpu":
            trim_heap()
        return held(self._device)
