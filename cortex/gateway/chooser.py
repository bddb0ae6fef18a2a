"""Which of the replicas that could take a request does: what is remembered for that choice."""

from __future__ import annotations

from contextlib import AbstractContextManager

import trio

from cortex.gateway.affinity import Candidate, SessionMap, choose
from cortex.gateway.circuits import Attempt, Circuits
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, NodeSnapshot, Replica
from cortex.wire import neuron as wire

LONGEST_REST = 60.0  # seconds; who asks for more is tried again all the same

# The standing of a candidate: a worse one is taken when there is no better.
WELL, IN_DOUBT, CIRCUIT_OPEN = range(3)


class Chooser:
    """Owner of the sessions, the circuits, and of which nodes have asked for a rest."""

    def __init__(self, fleet: Fleet, events: EventLog | None = None) -> None:
        self._fleet = fleet
        self._sessions = SessionMap()
        self._circuits = Circuits(fleet, events)
        self._resting: dict[str, float] = {}  # node to the time until which others come first

    def choose(self, usable: list[Replica], session: str | None) -> Replica:
        """One of *usable*, which are replicas of one model, for a request of *session*."""
        if len(usable) == 1:
            return usable[0]
        model = usable[0].model.id
        last = None if session is None else self._sessions.last(model, session)
        candidates = [self._candidate(replica) for replica in usable]
        return usable[candidates.index(choose(candidates, session, last))]

    def served(self, replica: Replica, session: str | None) -> None:
        """A request of *session* goes to *replica*, whose prefix cache will know it."""
        if session is not None:
            self._sessions.served(replica.model.id, session, replica.node.name)

    def attempt(self, node: NodeSnapshot) -> AbstractContextManager[Attempt]:
        """A request is sent to *node*, and has ended with the block."""
        return self._circuits.attempt(node)

    def rest(self, node: str, seconds: float) -> None:
        """*node* has asked to be left alone for *seconds*: others come first until then."""
        self._resting[node] = trio.current_time() + min(seconds, LONGEST_REST)

    def _candidate(self, replica: Replica) -> Candidate:
        node = replica.node
        return Candidate(
            node.name,
            self._fleet.load_of(node.name, replica.model.id),
            standing=self._standing(node),
            capacity=self._fleet.capacity_of(node.name, replica.model.id),
        )

    def _standing(self, node: NodeSnapshot) -> int:
        if not self._circuits.admits(node):
            return CIRCUIT_OPEN
        # A node that recovers has lost a device: its process is about to be replaced, or was.
        recovering = node.health is not None and node.health.status == wire.RECOVERING
        return IN_DOUBT if node.suspect or recovering or self._rests(node.name) else WELL

    def _rests(self, node: str) -> bool:
        return self._resting.get(node, 0.0) > trio.current_time() if self._resting else False
