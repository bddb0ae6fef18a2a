"""The circuit breakers of all nodes, and what is told when one opens or closes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from cortex.gateway.breaker import Breaker, State, Ticket
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.service import logs

CLOSED = State.CLOSED.value

log = logs.get("gateway.circuits")


@attrs.frozen(eq=False)
class Attempt:
    """One request at one node, for as long as it has something to say of the node."""

    _tell: Callable[[bool, str], None]

    def succeeded(self) -> None:
        """The node has answered, be it that the request was wrong."""
        self._tell(True, "")

    def failed(self, why: str) -> None:
        """The node refused, reset, broke off or answered that it has failed."""
        self._tell(False, why)


@attrs.define(eq=False)
class Circuits:
    """Owner of the breakers; their states are published in the fleet's snapshots.

    A breaker belongs to a node at its address: one that has moved begins with a closed circuit.
    """

    _fleet: Fleet
    _events: EventLog | None = None
    _breakers: dict[str, tuple[str, Breaker]] = attrs.field(factory=dict, init=False)

    def admits(self, node: NodeSnapshot) -> bool:
        """Whether a request should be sent to *node* while there are others."""
        if node.circuit == CLOSED:
            return True
        return self._breaker(node).admits(trio.current_time())

    @contextmanager
    def attempt(self, node: NodeSnapshot) -> Iterator[Attempt]:
        """A request is sent to *node*, and has ended with the block."""
        breaker = self._breaker(node)
        ticket = breaker.enter(trio.current_time())
        self._publish(node, breaker)
        try:
            yield Attempt(lambda good, why: self._told(node, breaker, ticket, good, why))
        finally:
            breaker.left(ticket)
            self._publish(node, breaker)

    def _told(
        self, node: NodeSnapshot, breaker: Breaker, ticket: Ticket, good: bool, why: str
    ) -> None:
        now, before = trio.current_time(), breaker.state
        (breaker.succeeded if good else breaker.failed)(ticket, now)
        if breaker.state is before or not self._publish(node, breaker):
            return
        if breaker.state is State.OPEN:
            pause = round(breaker.until - now, 1)
            log.warning("circuit opened", node=node.name, why=why, seconds=pause)
            self._event("circuit_opened", node=node.name, reason=why, seconds=pause)
        elif breaker.state is State.CLOSED:
            log.info("circuit closed", node=node.name)
            self._event("circuit_closed", node=node.name)

    def _event(self, kind: str, **fields: object) -> None:
        if self._events is not None:
            self._events.publish(kind, **fields)

    def _publish(self, node: NodeSnapshot, breaker: Breaker) -> bool:
        """Show the breaker's state, if it is still the node's."""
        _, current = self._breakers.get(node.name, ("", None))
        if current is not breaker or self._fleet.node(node.name).endpoint != node.endpoint:
            return False
        self._fleet.circuit(node.name, breaker.state.value)
        return True

    def _breaker(self, node: NodeSnapshot) -> Breaker:
        endpoint, breaker = self._breakers.get(node.name, ("", None))
        if breaker is None or endpoint != node.endpoint:
            breaker = Breaker()
            self._breakers[node.name] = (node.endpoint, breaker)
        return breaker
