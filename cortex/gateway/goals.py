"""Models that somebody waits for, and what becomes of them."""

from __future__ import annotations

import copy
import math

import attrs
import trio

from cortex.config.catalogue import CatalogueEntry
from cortex.errors import CortexError
from cortex.gateway.node_owner import Claim
from cortex.gateway.placement import Placement

# A client that gave up may ask again: for this long its place in the line is kept.
LINGER_SECONDS = 10.0


class LoadAttemptFailed(Exception):
    """A neuron was asked to load and did not; ``cause`` is what it said."""

    def __init__(self, node: str, cause: CortexError) -> None:
        super().__init__(node)
        self.node = node
        self.cause = cause

    def own_cause(self) -> CortexError:
        """A copy of the cause, to be raised to one waiter."""
        return copy.copy(self.cause)


@attrs.define(eq=False)
class Goal:
    """One model to be loaded, on ``node`` if given. Every request that waits for it shares this.

    It is waiting, with ``placement`` and ``claim`` if a model it displaces is being let finish; or
    ``under_way``; or ``landed``.
    """

    model: str
    node: str | None
    entry: CatalogueEntry | None
    since: float  # when it was first waited for; trio's clock
    ordered: bool = False  # by an operator: goes on without anybody waiting
    waiters: int = 0
    left_at: float = math.inf  # when the last waiter left
    tried: set[str] = attrs.field(factory=set)
    failed: LoadAttemptFailed | None = None
    detail: str = ""  # why it waits
    wake_at: float = math.inf
    placement: Placement | None = None
    claim: Claim | None = None
    under_way: bool = False
    called_off: bool = False  # by an operator's unload
    landed: trio.Event = attrs.field(factory=trio.Event)
    _outcome: str | Exception = attrs.field(default="", init=False)

    @property
    def key(self) -> tuple[str, str | None]:
        return self.model, self.node

    @property
    def at_work_on(self) -> str | None:
        """The node that loads it, or makes room for it; None while it waits."""
        return self.placement.node if self.under_way and self.placement is not None else None

    @property
    def forgotten_at(self) -> float:
        """When it is given up if nobody comes back."""
        return self.left_at + LINGER_SECONDS

    def hold(self, detail: str, until: float) -> None:
        self.detail = detail
        self.wake_at = until

    def wanted(self, now: float) -> bool:
        """Whether somebody waits for it, or may be back soon."""
        return self.ordered or self.waiters > 0 or now < self.forgotten_at

    def land(self, node: str) -> None:
        self._outcome = node
        self.landed.set()

    def fail(self, error: Exception) -> None:
        self._outcome = error
        self.landed.set()

    async def outcome(self) -> str:
        """The node that has the model, once one has it.

        Each waiter raises an error of its own: a shared one would collect their tracebacks.
        """
        self.waiters += 1
        try:
            await self.landed.wait()
        finally:
            self.waiters -= 1
            if not self.waiters:
                self.left_at = trio.current_time()
        error = self._outcome
        if isinstance(error, str):
            return error
        if isinstance(error, LoadAttemptFailed):
            raise LoadAttemptFailed(error.node, error.cause) from error.cause
        raise copy.copy(error) from error
