"""How many requests a model takes at once, and how many may wait: a short, bounded queue.

The fair, prioritised queue is the gateway's; this one protects a neuron that serves alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from cortex.errors import BadRequest, Draining, Overloaded


@attrs.define
class Seats:
    """Sequences of one model that are in the engine, running or waiting there."""

    taken: int = 0
    rejected: int = 0


@attrs.define(eq=False)
class Admission:
    """Counts sequences per model. ``max_running`` is the engine's batch, beyond it they wait."""

    max_running: int
    max_waiting: int
    _seats: dict[str, Seats] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def close(self) -> None:
        """Admit nothing more: the neuron drains."""
        self._closed = True

    @contextmanager
    def admit(self, model: str, sequences: int) -> Iterator[None]:
        """Hold *sequences* seats of *model*. `Overloaded` when there are not as many left,
        `BadRequest` when there never will be, `Draining` after `close`."""
        if self._closed:
            raise Draining("the neuron is shutting down")
        seats = self._seats.setdefault(model, Seats())
        limit = self.max_running + self.max_waiting
        if sequences > limit:
            raise BadRequest(
                f"{sequences} completions at once are more than the {limit} this neuron takes",
                param="n",
            )
        if seats.taken + sequences > limit:
            seats.rejected += 1
            queued = max(0, seats.taken - self.max_running)
            raise Overloaded(
                f"{model} has {seats.taken} requests running or queued, at most {limit} are taken",
                retry_after=float(min(120, max(1, (queued + 1) * 2))),
                extras={"taken": seats.taken, "limit": limit},
            )
        seats.taken += sequences
        try:
            yield
        finally:
            seats.taken -= sequences

    def seats(self, model: str) -> Seats:
        """The counts of *model* as they stand."""
        return self._seats.get(model) or Seats()

    def waiting(self, model: str) -> int:
        return max(0, self.seats(model).taken - self.max_running)

    def forget(self, model: str) -> None:
        """Drop the counts of a model that is gone and idle."""
        if model in self._seats and not self._seats[model].taken:
            del self._seats[model]
