"""How much room is left where this process writes, looked at again and again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import attrs
import trio
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.service import logs

INTERVAL = 30.0
# A file system over a network may answer never; a scrape must not wait for it.
BOUND = 5.0

log = logs.get("service.disk")


@attrs.frozen
class Room:
    """Bytes of a file system: what is free to this user, and all of it."""

    free: int
    size: int


def room_at(path: Path) -> Room:
    """The room of the file system that *path* is on, or will be once it exists. Blocks; OSError
    when nobody can say."""
    path = path.absolute()
    while True:
        try:
            told = os.statvfs(path)
        except FileNotFoundError:
            if path == path.parent:
                raise
            path = path.parent
        else:
            return Room(told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize)


@attrs.define(eq=False)
class DiskMonitor(Collector):
    """Shows *free* and *size*, the names of two gauges in bytes, with the label ``path_kind``: the
    keys of *places*. What could not be read has no sample."""

    free: str
    size: str
    places: Mapping[str, Path]
    _rooms: dict[str, Room] = attrs.field(factory=dict, init=False)
    _silent: set[str] = attrs.field(factory=set, init=False)
    # One thread a place at most: while a read hangs no further one of it is started.
    _limiters: dict[str, trio.CapacityLimiter] = attrs.field(factory=dict, init=False)

    async def run(self) -> NoReturn:
        """Look now, and every half minute until cancelled."""
        while True:
            await self.look()
            await trio.sleep(INTERVAL)

    async def look(self) -> None:
        """Read the room of every place once, within the bound."""
        async with trio.open_nursery() as nursery:
            for kind, path in self.places.items():
                nursery.start_soon(self._look, kind, path)

    async def _look(self, kind: str, path: Path) -> None:
        limiter = self._limiters.setdefault(kind, trio.CapacityLimiter(1))
        cause: object = f"no answer within {BOUND:g} s"
        with trio.move_on_after(BOUND):
            try:
                self._rooms[kind] = await trio.to_thread.run_sync(
                    room_at, path, abandon_on_cancel=True, limiter=limiter
                )
            except OSError as exc:
                cause = exc.strerror or exc
            else:
                self._silent.discard(kind)
                return
        self._rooms.pop(kind, None)
        if kind not in self._silent:  # the first of a row
            self._silent.add(kind)
            log.warning("free space not known", path=str(path), cause=cause)

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing to collect before the first scrape

    def collect(self) -> Iterable[Metric]:
        free = GaugeMetricFamily(self.free, "Bytes free to this user.", labels=["path_kind"])
        size = GaugeMetricFamily(self.size, "Bytes of the file system.", labels=["path_kind"])
        for kind, room in self._rooms.items():
            free.add_metric([kind], room.free)
            size.add_metric([kind], room.size)
        return free, size
