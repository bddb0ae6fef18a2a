from __future__ import annotations

import pytest
import trio

from cortex.config.gateway import NeuronNode
from cortex.gateway.breaker import FAILURES, FIRST_PAUSE
from cortex.gateway.circuits import Circuits
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet
from cortex.wire import neuron as wire


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet([NeuronNode("a", "http://a:1")], clock=lambda: 0.0)
    found.polled("a", [wire.Model("m", wire.LOADED)], wire.Health(1.0), asked_at=0)
    return found


def fail(circuits: Circuits, fleet: Fleet, times: int = FAILURES) -> None:
    for _ in range(times):
        with circuits.attempt(fleet.node("a")) as attempt:
            attempt.failed("connection reset")


async def test_a_circuits_life_is_published_and_told(fleet, autojump_clock):
    events = EventLog()
    circuits = Circuits(fleet, events)
    assert circuits.admits(fleet.node("a"))
    fail(circuits, fleet)
    assert fleet.node("a").circuit == "open"
    assert not circuits.admits(fleet.node("a"))
    await trio.sleep(FIRST_PAUSE)
    with circuits.attempt(fleet.node("a")) as attempt:
        assert fleet.node("a").circuit == "half_open"
        attempt.succeeded()
        assert fleet.node("a").circuit == "closed"
    told = [(event.kind, event.fields.get("reason")) for event in events.since(0).events]
    assert told == [("circuit_opened", "connection reset"), ("circuit_closed", None)]


async def test_good_polls_do_not_close_it(fleet, autojump_clock):
    circuits = Circuits(fleet)
    fail(circuits, fleet)
    await trio.sleep(FIRST_PAUSE)
    fleet.polled("a", [wire.Model("m", wire.LOADED)], wire.Health(9.0), asked_at=5)
    assert fleet.node("a").circuit == "open"


async def test_a_probe_whose_client_leaves_makes_room_for_another(fleet, autojump_clock):
    circuits = Circuits(fleet)
    fail(circuits, fleet)
    await trio.sleep(FIRST_PAUSE)
    with pytest.raises(RuntimeError), circuits.attempt(fleet.node("a")):
        raise RuntimeError
    assert fleet.node("a").circuit == "open"
    assert circuits.admits(fleet.node("a"))


async def test_a_node_that_moved_begins_with_a_closed_one_and_is_not_blamed_for_the_old(
    fleet, autojump_clock
):
    circuits = Circuits(fleet)
    old = fleet.node("a")
    with circuits.attempt(old) as attempt:
        fail(circuits, fleet, FAILURES - 1)
        fleet.configure([NeuronNode("a", "http://moved:1")])
        attempt.failed("reset")
    assert fleet.node("a").circuit == "closed"
    assert circuits.admits(fleet.node("a"))
    fail(circuits, fleet, FAILURES - 1)
    assert fleet.node("a").circuit == "closed"
