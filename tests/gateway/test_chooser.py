from __future__ import annotations

from contextlib import ExitStack

import attrs
import pytest
import trio

from cortex.config.gateway import NeuronNode
from cortex.gateway.breaker import FAILURES
from cortex.gateway.chooser import LONGEST_REST, Chooser
from cortex.gateway.fleet import Fleet, Replica
from cortex.wire import neuron as wire


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet([NeuronNode(name, f"http://{name}:1") for name in "ab"], clock=lambda: 0.0)
    for name in "ab":
        found.polled(name, [wire.Model("m", wire.LOADED)], wire.Health(1.0), asked_at=0)
    return found


def replicas(fleet: Fleet) -> list[Replica]:
    return list(fleet.replicas("m"))


def chosen(chooser: Chooser, fleet: Fleet, sessions: int = 16) -> set[str]:
    """The nodes that requests of so many sessions would go to."""
    found = replicas(fleet)
    return {chooser.choose(found, str(number)).node.name for number in range(sessions)}


async def test_sessions_spread_and_each_goes_back_where_it_was_served(fleet, autojump_clock):
    chooser = Chooser(fleet)
    assert chosen(chooser, fleet) == {"a", "b"}
    for number in range(16):
        chooser.served(replicas(fleet)[0], str(number))
    assert chosen(chooser, fleet) == {"a"}


async def test_a_node_that_asked_for_a_rest_comes_after_others_until_then(fleet, autojump_clock):
    chooser = Chooser(fleet)
    chooser.rest("a", 10)
    assert chosen(chooser, fleet) == {"b"}
    chooser.rest("b", 10)
    assert chosen(chooser, fleet) == {"a", "b"}  # somebody has to
    await trio.sleep(10)
    assert chosen(chooser, fleet) == {"a", "b"}
    chooser.rest("a", 10 * LONGEST_REST)
    await trio.sleep(LONGEST_REST)
    assert chosen(chooser, fleet) == {"a", "b"}


async def test_doubt_weighs_less_than_an_open_circuit(fleet, autojump_clock):
    chooser = Chooser(fleet)
    fleet.suspect("a", "reset")
    assert chosen(chooser, fleet) == {"b"}
    for _ in range(FAILURES):
        with chooser.attempt(fleet.node("b")) as attempt:
            attempt.failed("status 500")
    assert chosen(chooser, fleet) == {"a"}
    only = [replica for replica in replicas(fleet) if replica.node.name == "b"]
    assert chooser.choose(only, None).node.name == "b"


async def test_a_replica_that_takes_many_may_be_ahead_by_more(fleet, autojump_clock):
    chooser = Chooser(fleet)
    health = wire.Health(2.0, models=(wire.ModelLoad("m", max_in_flight=64),))
    fleet.polled("a", [wire.Model("m", wire.LOADED)], health, asked_at=1)
    chooser.served(replicas(fleet)[0], "s")
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(fleet.hold("a", "m"))
        assert chooser.choose(replicas(fleet), "s").node.name == "a"
        held.enter_context(fleet.hold("a", "m"))
        assert chooser.choose(replicas(fleet), "s").node.name == "b"


async def test_a_node_that_recovers_is_in_doubt(fleet, autojump_clock):
    recovering = attrs.evolve(fleet.node("a").health, status="recovering", uptime_secs=2.0)
    fleet.polled("a", [wire.Model("m", wire.LOADED)], recovering, asked_at=1)
    assert chosen(Chooser(fleet), fleet) == {"b"}
