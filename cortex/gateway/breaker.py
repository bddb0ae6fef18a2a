"""When to leave a node alone whose data path fails: one circuit breaker, without I/O or clock.

Closed until enough of the latest requests failed, and at least half of them; then open for a
back-off that doubles with each opening; then half open: one request is let through, and decides.
Only requests tell: a node may answer polls well and still break every stream. What began before the
circuit opened says nothing about it afterwards.
"""

from __future__ import annotations

import enum
from collections import deque

import attrs

FAILURES = 5
WINDOW = 30.0  # seconds in which failures are counted together
KEPT = 64  # outcomes looked at, at most
FIRST_PAUSE = 5.0  # seconds
LONGEST_PAUSE = 60.0


class State(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@attrs.frozen
class Ticket:
    """A request that was sent. ``probe``: it is the one that decides a half-open circuit."""

    opening: int
    probe: bool = False


@attrs.define(eq=False)
class Breaker:
    """``now`` is in seconds, of any clock that never goes back. Give each ticket back with
    `succeeded` or `failed`, as often as it has something to say, and `left` when it has ended."""

    state: State = attrs.field(default=State.CLOSED, init=False)
    until: float = attrs.field(default=0.0, init=False)  # when the back-off ends
    _outcomes: deque[tuple[float, bool]] = attrs.field(
        factory=lambda: deque(maxlen=KEPT), init=False
    )
    _opening: int = attrs.field(default=0, init=False)
    _in_a_row: int = attrs.field(default=0, init=False)  # openings without a quiet time between
    _closed_at: float | None = attrs.field(default=None, init=False)
    _probe: Ticket | None = attrs.field(default=None, init=False)

    def admits(self, now: float) -> bool:
        """Whether a request may be sent while there are other nodes."""
        return self.state is State.CLOSED or (self._probe is None and now >= self.until)

    def enter(self, now: float) -> Ticket:
        """A request is sent, whether admitted or for want of another node."""
        if self.state is State.CLOSED or self._probe is not None or now < self.until:
            return Ticket(self._opening)
        self.state = State.HALF_OPEN
        self._probe = Ticket(self._opening, probe=True)
        return self._probe

    def succeeded(self, ticket: Ticket, now: float) -> None:
        if ticket.opening != self._opening:
            return
        if self.state is State.CLOSED:
            self._outcomes.append((now, True))
        else:
            self.state, self._closed_at, self._probe = State.CLOSED, now, None
            self._outcomes.clear()

    def failed(self, ticket: Ticket, now: float) -> None:
        if ticket.opening != self._opening:
            return
        if self.state is State.CLOSED:
            self._outcomes.append((now, False))
            if self._too_many(now):
                self._open(now)
        elif ticket is self._probe:
            self._open(now)

    def left(self, ticket: Ticket) -> None:
        """The request has ended. A probe that told nothing (its client left) makes room for one."""
        if ticket is self._probe:
            self._probe = None
            self.state = State.OPEN

    def _too_many(self, now: float) -> bool:
        while self._outcomes and now - self._outcomes[0][0] > WINDOW:
            self._outcomes.popleft()
        failures = sum(not good for _, good in self._outcomes)
        return failures >= FAILURES and 2 * failures >= len(self._outcomes)

    def _open(self, now: float) -> None:
        quiet = self._closed_at is None or now - self._closed_at > WINDOW
        if self.state is State.CLOSED and quiet:
            self._in_a_row = 0
        self._in_a_row += 1
        self._opening += 1
        self.state, self._probe = State.OPEN, None
        self.until = now + min(FIRST_PAUSE * 2.0 ** (self._in_a_row - 1), LONGEST_PAUSE)
        self._outcomes.clear()
