"""The waiting room: who may be sent to a model's neurons now, and who waits in the gateway.

A neuron's own queue is short, so that a request that waits can still go to whichever replica frees
first. What the replicas of a model take together is let through; the rest waits here, bounded in
number and in time, and is let in by priority and fairly between keys (`fair_line`).
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import trio

from cortex.errors import Overloaded
from cortex.gateway.fair_line import RANKS, FairLine, Waiter
from cortex.gateway.fleet import Fleet

RECHECK_SECONDS = 1.0  # a neuron may free a seat for another gateway's request, unseen by us


@attrs.define(eq=False)
class _Line:
    """One model's requests: how many were let through, and those that wait."""

    inside: int = 0
    waiting: FairLine = attrs.field(factory=FairLine)
    left: trio.Event | None = None  # where somebody waits for the next one to leave


@attrs.define(eq=False)
class Seat:
    """A place among a model's requests under way, for as long as the block lasts. ``waited`` are
    the seconds it took to get it. Entering raises `Overloaded` when too many wait already, when
    the wait was too long, or when another key's request needs the place in the line."""

    _room: WaitingRoom
    _model: str
    _key: str
    _priority: str
    _line: _Line = attrs.field(init=False)
    waited: float = 0.0

    async def __aenter__(self) -> Seat:
        room, model = self._room, self._model
        self._line = line = room.line(model)
        if line.waiting or not room.has_seat(model, line):
            started = trio.current_time()
            await room.wait(model, line, Waiter(self._key, RANKS[self._priority], started))
            self.waited = trio.current_time() - started
        else:
            line.inside += 1
            line.waiting.sit(self._key)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._room.leave(self._model, self._line, self._key)


@attrs.define(eq=False)
class WaitingRoom:
    """Owns the lines. *depth* requests may wait for a model, each for *patience* seconds."""

    fleet: Fleet
    depth: int
    patience: float
    _lines: dict[str, _Line] = attrs.field(factory=dict, init=False)

    def seat(self, model: str, key: str = "", priority: str = "normal") -> Seat:
        """A seat of *model* for a request of *key*, to be entered."""
        return Seat(self, model, key, priority)

    async def retry_later(self, model: str) -> None:
        """Return when a seat of *model* was given back, or after a second: its neurons are full
        although this gateway thought otherwise."""
        line = self.line(model)
        if line.left is None:
            line.left = trio.Event()
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

    def all_waiting(self) -> dict[str, int]:
        """`waiting` of each model that was ever asked for."""
        return {model: len(line.waiting) for model, line in self._lines.items()}

    # For seats

    def line(self, model: str) -> _Line:
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line()
        return line

    def has_seat(self, model: str, line: _Line) -> bool:
        capacity = self._capacity(model)
        return capacity is None or line.inside < max(1, capacity)

    async def wait(self, model: str, line: _Line, waiter: Waiter) -> None:
        """Return with a seat."""
        if len(line.waiting) >= self.depth:
            displaced = line.waiting.displace_for(waiter.key)
            if displaced is None:
                raise self._full(line, f"{len(line.waiting)} requests wait for {model} already")
            displaced.displaced = True
            displaced.called.set()
        line.waiting.push(waiter)
        try:
            with trio.move_on_after(self.patience):
                await waiter.called.wait()
        except BaseException:
            if not line.waiting.remove(waiter) and not waiter.displaced:
                self.leave(model, line, waiter.key)  # let in while it was being cancelled
            raise
        if waiter.displaced:
            raise self._full(line, f"too many requests of this key wait for {model}")
        if line.waiting.remove(waiter):
            raise self._full(line, f"no room for {model} within {self.patience:g} s")

    def leave(self, model: str, line: _Line, key: str) -> None:
        """Give a seat of *key* back."""
        line.inside -= 1
        line.waiting.leave(key)
        if line.left is not None:
            line.left.set()
            line.left = None
        self._admit(model, line)

    def _admit(self, model: str, line: _Line) -> None:
        """Let in as many as there is room for."""
        while line.waiting and self.has_seat(model, line):
            waiter = line.waiting.pop(trio.current_time())
            line.inside += 1
            line.waiting.sit(waiter.key)
            waiter.called.set()
        if not line.inside and not line.waiting and self._lines.get(model) is line:
            del self._lines[model]

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

    def _full(self, line: _Line, message: str) -> Overloaded:
        return Overloaded(message, retry_after=float(min(60, 2 + len(line.waiting) // 8)))
