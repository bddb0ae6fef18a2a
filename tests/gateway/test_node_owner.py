from __future__ import annotations

import pytest
import trio
from fakes.control_plane import control_plane
from fakes.neuron import FakeNeuron
from trio.testing import wait_all_tasks_blocked

from cortex.config.gateway import NeuronNode
from cortex.gateway.fleet import Fleet
from cortex.gateway.node_owner import NodeOwner
from cortex.wire import neuron as wire


class Seen:
    """An owner of a node with two devices, without a neuron behind it."""

    def __init__(self) -> None:
        self.fleet = Fleet([NeuronNode("n", "http://n:1")])
        self.changes = 0
        self.owner = NodeOwner("n", self.fleet, None, None, self.change)
        devices = tuple(wire.Device(i, "gpu", vram_total_mb=100) for i in (0, 1))
        self.fleet.described("n", wire.Discovery("n", "linux", "6", devices), None)

    def change(self) -> None:
        self.changes += 1

    def poll(self) -> None:
        self.fleet.polled("n", (), wire.Health(1.0), asked_at=trio.current_time())


async def test_a_device_has_one_claim_at_a_time_and_others_are_free(autojump_clock):
    seen = Seen()
    claim = seen.owner.claim((0,), 10, ("m",))
    assert seen.owner.taken() == {0}
    assert not seen.owner.free(frozenset({0}))
    assert not seen.owner.free(None)
    assert seen.owner.free(frozenset({1}))
    assert seen.owner.closed("m")
    with pytest.raises(AssertionError):
        seen.owner.claim(None)
    seen.owner.release(claim, settle=False)
    assert seen.owner.free(None)
    assert not seen.owner.closed("m")
    assert seen.changes == 1


async def test_a_claim_on_everything_takes_every_device(autojump_clock):
    seen = Seen()
    seen.owner.claim(None)
    assert seen.owner.taken() == {0, 1}
    assert not seen.owner.free(frozenset({1}))


async def test_who_waits_for_a_claim_comes_before_any_placement(autojump_clock):
    seen = Seen()
    claim = seen.owner.claim((0,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.owner.claimed, frozenset({0}))
        await wait_all_tasks_blocked()
        assert seen.owner.taken() == {0, 1}
        seen.owner.release(claim, settle=False)
        await wait_all_tasks_blocked()
        assert seen.owner.taken() == {0}
        assert not seen.owner.free(frozenset({0}))


async def test_who_stops_waiting_leaves_nothing_behind(autojump_clock):
    seen = Seen()
    claim = seen.owner.claim((0,))
    with trio.move_on_after(5):
        await seen.owner.claimed(frozenset({0}))
    assert seen.owner.taken() == {0}
    seen.owner.release(claim, settle=False)
    assert seen.owner.free(None)


async def test_what_a_load_took_is_promised_until_a_later_poll_shows_it(autojump_clock):
    seen = Seen()
    seen.poll()
    await trio.sleep(1)
    seen.owner.release(seen.owner.claim((1,), 40), settle=True)
    assert seen.owner.promised_mb() == {1: 40}
    assert seen.owner.stale()
    seen.poll()  # at the same moment: asked no later than the load ended
    assert seen.owner.promised_mb() == {1: 40}
    await trio.sleep(1)
    seen.poll()
    assert seen.owner.promised_mb() == {}
    assert not seen.owner.stale()


async def test_cycles_are_counted_within_one_life_of_the_neuron(patient_clock):
    neuron = FakeNeuron("n")
    async with control_plane(neuron) as plane:
        owner = plane.router._loads.owners.of("n")
        for _ in range(3):
            await plane.router.load("m")
            await plane.router.unload("m")
        assert owner.cycles() == 3
        await trio.sleep(5)
        neuron.restarted()
        await plane.seen(lambda fleet: owner.cycles() == 0)
