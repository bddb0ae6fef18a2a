"""Which of several launches is quickest on this device, measured once a shape, at load."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Hashable, Sequence

import torch
from triton.runtime.errors import OutOfResources

logger = logging.getLogger("cortex.engine")

_RUNS = 7
_WARM_UPS = 2  # the first compiles
_CLEARLY = 1.05  # the first is left where another is quicker by as much
_BUSY_CYCLES = 500_000  # a quarter of a millisecond at 2 GHz


class Tuner:
    """Remembers what was chosen. Without a GPU nothing is measured: the first launch is taken."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chosen: dict[Hashable, int] = {}

    def choose(self, key: Hashable, launches: Sequence[Callable[[], object]]) -> int:
        """The number of the quickest of *launches*, all of which compute what *key* stands for.

        Bounded: a handful of runs each. A launch that the device has not the resources for is
        left out; an error that they all share is raised.
        """
        found = self._chosen.get(key)
        if found is None:
            found = 0
            if self._device.type == "cuda" and len(launches) > 1:
                found = self._measured(key, launches)
            self._chosen[key] = found
        return found

    def _measured(self, key: Hashable, launches: Sequence[Callable[[], object]]) -> int:
        size = 2 * torch.cuda.get_device_properties(self._device).L2_cache_size
        flush = torch.empty(size, dtype=torch.uint8, device=self._device)
        times: dict[int, float] = {}
        error: Exception | None = None
        for number, launch in enumerate(launches):
            try:
                times[number] = _milliseconds(launch, flush)
            except OutOfResources as failure:
                error = failure
        if not times:
            raise error or ValueError("nothing to choose from")
        best = min(times, key=times.__getitem__)
        if times.get(0, times[best]) < _CLEARLY * times[best]:
            best = 0
        logger.debug("%s: %s ms, chosen %d", key, times, best)
        return best


def _milliseconds(launch: Callable[[], object], flush: torch.Tensor) -> float:
    """The median time on the device with cold caches.

    The device is kept busy while the host submits a launch, which takes longer than many a kernel:
    else the host would be measured.
    """
    for _ in range(_WARM_UPS):
        launch()
    events = []
    for _ in range(_RUNS):
        flush.zero_()
        torch.cuda._sleep(_BUSY_CYCLES)  # type: ignore[no-untyped-call]
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        launch()
        stop.record()
        events.append((start, stop))
    torch.cuda.synchronize(flush.device)
    return float(statistics.median(start.elapsed_time(stop) for start, stop in events))
