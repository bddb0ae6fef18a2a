"""The waiting room: who may be sent to a model's neurons now, and who waits in the gateway.

A neuron's own queue is short, so that a request that waits can still go to whichever replica frees
first. What the replicas of a model take together is let through; the rest waits here in order of
arrival, bounded in number and in time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import attrs
import trio

from cortex.errors import Overloaded
from cortex.gateway.fleet import Fleet

RECHECK_SECONDS = 1.0  # a neuron may free a seat for another gateway's request, unseen by us


@attrs.define(eq=False)
class _Line:
    """One model's requests: those let through, and those that wait, in order."""

    inside: int = 0
    waiting: OrderedDict[int, trio.Event] = attrs.field(factory=OrderedDict)
    left: trio.Event = attrs.field(factory=trio.Event)  # replaced each time somebody leaves


@attrs.define(eq=False)
class WaitingRoom:
    """Owns the lines. *depth* requests may wait for a model, each for *patience* seconds."""

    fleet: Fleet
    depth: int
    patience: float
    _lines: dict[str, _Line] = attrs.field(factory=dict, init=False)
    _tickets: int = attrs.field(default=0, init=False)

    @asynccontextmanager
    async def seat(self, model: str) -> AsyncIterator[float]:
        """Hold a seat of *model*; gives the seconds waited. `Overloaded` when too many wait
        already, or when the wait was too long."""
        line = self._lines.setdefault(model, _Line())
        started = trio.current_time()
        if line.waiting or not self._room(model, line):
            await self._wait(model, line)
        else:
            line.inside += 1
        try:
            yield trio.current_time() - started
        finally:
            line.inside -= 1
            left, line.left = line.left, trio.Event()
            left.set()
            self._admit(model, line)

    async def retry_later(self, model: str) -> None:
        """Return when a seat of *model* was given back, or after a second: its neurons are full
        although this gateway thought otherwise."""
        line = self._lines.setdefault(model, _Line())
        with trio.move_on_after(RECHECK_SECONDS):
            await line.left.wait()

    async def run(self) -> NoReturn:
        """Let waiting requests in when the fleet's capacity grows. Runs until cancelled."""
        while True:
            await self.fleet.wait_changed()
            for model, line in list(self._lines.items()):
                self._admit(model, line)

    def waiting(self, model: str) -> int:
        """How many requests wait for *model*."""
        line = self._lines.get(model)
        return len(line.waiting) if line is not None else 0

    async def _wait(self, model: str, line: _Line) -> None:
        if len(line.waiting) >= self.depth:
            raise self._full(model, f"{len(line.waiting)} requests wait for {model} already")
        self._tickets += 1
        ticket, event = self._tickets, trio.Event()
        line.waiting[ticket] = event
        try:
            with trio.move_on_after(self.patience):
                await event.wait()
        except BaseException:
            if line.waiting.pop(ticket, None) is None:  # let in while it was being cancelled
                line.inside -= 1
                self._admit(model, line)
            raise
        if line.waiting.pop(ticket, None) is not None:
            raise self._full(model, f"no room for {model} within {self.patience:g} s")

    def _admit(self, model: str, line: _Line) -> None:
        """Let in as many as there is room for, in order of arrival."""
        while line.waiting and self._room(model, line):
            _, event = line.waiting.popitem(last=False)
            line.inside += 1
            event.set()
        if not line.inside and not line.waiting:
            self._lines.pop(model, None)

    def _room(self, model: str, line: _Line) -> bool:
        capacity = self._capacity(model)
        return capacity is None or line.inside < max(1, capacity)

    def _capacity(self, model: str) -> int | None:
        """What the replicas of *model* take together; None when one has not said, or there is none
        yet (the router makes requests wait for the load)."""
        total = 0
        replicas = [replica for replica in self.fleet.replicas(model) if replica.servable]
        for replica in replicas:
            health = replica.node.health
            load = next((m for m in health.models if m.id == model), None) if health else None
            if load is None or load.max_in_flight is None:
                return None
            total += load.max_in_flight + (load.max_queue_depth or 0)
        return total or None

    def _full(self, model: str, message: str) -> Overloaded:
        line = self._lines[model]
        return Overloaded(message, retry_after=float(min(60, 2 + len(line.waiting) // 8)))
