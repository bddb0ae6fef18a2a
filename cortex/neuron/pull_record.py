"""How far a pull is, how fast it comes, and how it ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import attrs

from cortex.errors import CortexError, clip
from cortex.neuron.hub_files import Pulled
from cortex.wire import neuron as wire

WINDOW = 10.0  # seconds that a rate looks back


@attrs.define(eq=False)
class PullRecord:
    """One pull; `report` is what its progress is told to. *clock* is monotonic."""

    request: wire.PullRequest
    clock: Callable[[], float] = time.monotonic
    status: str = wire.WAITING
    pulled: Pulled | None = None
    error: CortexError | None = None
    ended_at: float | None = None
    _began: float = attrs.field(init=False)
    _stage: tuple[str, int, int] | None = attrs.field(default=None, init=False)
    _seen: deque[tuple[float, int]] = attrs.field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.clock()

    def report(self, stage: str, done: int, total: int) -> None:
        now = self.clock()
        if self._stage is None or stage != self._stage[0]:
            self._seen.clear()  # what was there already, and other work, is no rate
        self._stage = (stage, done, total)
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW:
            self._seen.popleft()

    def begin(self) -> None:
        self.status = wire.PULLING

    def succeed(self, pulled: Pulled) -> None:
        self._end(wire.PULLED)
        self.pulled = pulled

    def fail(self, error: CortexError) -> None:
        self._end(wire.FAILED)
        self.error = error

    def cancel(self) -> None:
        self._end(wire.CANCELLED)

    def _end(self, status: str) -> None:
        self.status, self.ended_at = status, self.clock()

    def rate(self) -> float | None:
        """Bytes a second of late; None where there is nothing to tell it by."""
        if len(self._seen) < 2:
            return None
        (then, before), (_, done) = self._seen[0], self._seen[-1]
        spent = self.clock() - then
        return max(0.0, (done - before) / spent) if spent > 0 else None

    def state(self) -> wire.Pull:
        """As it is now."""
        end = self.clock() if self.ended_at is None else self.ended_at
        asked, pulled = self.request, self.pulled
        told = wire.Pull(
            asked.model_id,
            self.status,
            asked.source or asked.model_id,
            asked.quant,
            seconds=round(end - self._began, 3),
        )
        if self.ended_at is None and self._stage is not None:
            stage, done, total = self._stage
            rate = self.rate()
            eta = round((total - done) / rate, 1) if rate else None
            whole = None if rate is None else round(rate)
            told = attrs.evolve(
                told,
                stage=stage,
                bytes_done=done,
                bytes_total=total or None,
                bytes_per_second=whole,
                eta_seconds=eta,
            )
        if pulled is not None:
            told = attrs.evolve(
                told,
                path=str(pulled.path),
                commit=pulled.commit,
                size=pulled.size,
                fetched=pulled.fetched,
                repaired=pulled.repaired or None,
                offline=None if pulled.online else True,
            )
        if self.error is not None:
            message, code = clip(self.error.message, 500), self.error.error_code
            told = attrs.evolve(told, error=message, code=code)
        return told
