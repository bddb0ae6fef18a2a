"""Neurons that are killed, frozen, slow, or answer garbage."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from chaos.fleet import (
    DEMO,
    POLL_SECONDS,
    Gateway,
    Neuron,
    demo_neuron,
    fake_neuron,
    gateway,
    running,
)
from chaos.invariants import Baseline, settled
from chaos.load import CUT, MIX, REFUSED, TOLD, WHOLE, Client, Ledger, load, until
from chaos.neuron import GARBAGE

pytestmark = pytest.mark.slow


@attrs.frozen
class Pair:
    """Two fake neurons behind one gateway, which has been used."""

    gateway: Gateway
    neurons: tuple[Neuron, Neuron]
    client: Client
    ledger: Ledger
    before: Baseline

    async def settled(self) -> None:
        await settled(self.gateway, self.neurons, self.ledger, self.before)


@asynccontextmanager
async def pair(folder: Path, settings: str = "") -> AsyncIterator[Pair]:
    neurons = fake_neuron(folder, 0), fake_neuron(folder, 1)
    over = gateway(folder, neurons, settings=settings)
    ledger = Ledger()
    client = Client(over.url, ledger)
    async with running([over], neurons):
        async with load(client):
            await until(ledger, 20, WHOLE)
        yield Pair(over, neurons, client, ledger, Baseline.of(over, neurons))


async def test_one_that_is_killed_under_load_and_comes_back(tmp_path):
    async with pair(tmp_path) as here:
        victim = here.neurons[0]
        async with load(here.client, max_tokens=40):
            await until(here.ledger, 8, WHOLE)
            await victim.kill()
            down = await here.gateway.until_healthy(False, "node-0", seconds=10)
            await until(here.ledger, 20, WHOLE)  # the other one serves
            await victim.start()
            up = await here.gateway.until_healthy(True, "node-0", seconds=20)
            await until(here.ledger, 20, WHOLE)
        # Streams that had begun there say so; everything else was served by the other one.
        kinds = here.ledger.kinds
        assert kinds[TOLD], kinds
        assert not kinds[CUT], kinds
        assert all(outcome.status in (500, 502) for outcome in here.ledger.of(REFUSED))
        assert (down, up) < (5, 16)
        await here.settled()


async def test_one_with_an_engine_that_is_killed_in_mid_stream(tmp_path):
    neuron, ledger = demo_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron])
    client = Client(over.url, ledger, model=DEMO)
    async with running([over], [neuron]):
        await client.ask()
        before = Baseline.of(over, [neuron])
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(partial(client.ask, max_tokens=450, ignore_eos=True))
            with trio.fail_after(10):
                while await over.metric("cortex_time_to_first_token_seconds_count") < 3:
                    await trio.sleep(0.01)
            await neuron.kill()
        told, refused = ledger.of(TOLD), ledger.of(REFUSED)
        assert told
        assert all(outcome.status in (502, 503) for outcome in refused)
        assert len(told) + len(refused) + len(ledger.of(WHOLE)) == len(ledger.outcomes)
        await neuron.start()  # it loads what it had at its start
        await settled(over, [neuron], ledger, before, model=DEMO)


async def test_one_that_is_killed_while_it_loads(tmp_path):
    async with pair(tmp_path) as here:
        for neuron in here.neurons:
            await neuron.behave(load_seconds=2.0)
        client = Client(here.gateway.url, here.ledger, model="other")
        async with trio.open_nursery() as nursery:
            for path, stream in MIX:
                nursery.start_soon(partial(client.ask, path, stream=stream))
            with trio.fail_after(10):
                while not (loading := await _loading(here.gateway)):
                    await trio.sleep(0.05)
            victim = next(neuron for neuron in here.neurons if neuron.name == loading)
            await victim.kill()
        # They are told the cause, or had the other node load it.
        assert not here.ledger.of(CUT), here.ledger.kinds
        assert {outcome.status for outcome in here.ledger.of(REFUSED)} <= {502, 503, 529}
        await victim.start()
        with trio.fail_after(30):  # a load that failed is tried again, a little later
            while (await client.ask()).kind != WHOLE:
                await trio.sleep(0.5)
        await here.settled()


async def _loading(over: Gateway) -> str | None:
    """The node that loads a model."""
    for node in (await over.fleet())["nodes"]:
        if any(model["status"] == "loading" for model in node["models"]):
            return str(node["name"])
    return None


async def test_one_that_freezes_and_thaws(tmp_path):
    async with pair(tmp_path, "stall_seconds = 2\n") as here:
        victim = here.neurons[0]
        async with trio.open_nursery() as nursery, load(here.client):
            for _ in range(6):  # which go on for four seconds
                nursery.start_soon(partial(here.client.ask, max_tokens=400))
            await until(here.ledger, 20, WHOLE)
            victim.signal(signal.SIGSTOP)
            await until(here.ledger, 1, TOLD)  # by the bound on silence
            await here.gateway.until_healthy(False, "node-0", seconds=40)
            seen = len(here.ledger.of(TOLD, REFUSED))
            await until(here.ledger, 20, WHOLE)
            assert len(here.ledger.of(TOLD, REFUSED)) <= seen + 8  # those that were there before
            victim.signal(signal.SIGCONT)
            await here.gateway.until_healthy(True, "node-0", seconds=20)
            await until(here.ledger, 10, WHOLE)
        assert not here.ledger.of(CUT)
        await here.settled()


async def test_one_that_is_slow_delays_nobody_else(tmp_path):
    async with pair(tmp_path) as here:
        await here.settled()
        served = here.gateway.served()
        # With so few at a time a session is not worth waiting for.
        await here.neurons[0].behave(gap=0.2, capacity=4)
        await here.neurons[1].behave(capacity=4)
        await trio.sleep(4 * POLL_SECONDS)
        async with load(here.client):
            await until(here.ledger, 60, WHOLE, seconds=40)
            for neuron in here.neurons:
                await neuron.behave()
        assert here.ledger.kinds.keys() == {WHOLE}
        await here.settled()
        slow, quick = (
            here.gateway.served()[node] - served.get(node, 0) for node in ("node-0", "node-1")
        )
        assert quick > 2 * slow  # each has as many under way, and the quick one ends them sooner


async def test_garbage_of_every_kind_reaches_no_client_as_an_answer(tmp_path):
    async with pair(tmp_path, "stall_seconds = 5\n") as here:
        # An event may have 16 MiB, for each of which memory is taken once. It is not lost: a
        # second round needs no more.
        await _garbage(here)
        again = attrs.evolve(here, before=Baseline.of(here.gateway, here.neurons))
        await _garbage(here)
        await again.settled()


async def _garbage(here: Pair) -> None:
    """All there is, from both, to requests of all forms at once."""
    for kind in GARBAGE:
        seen = len(here.ledger.outcomes)
        for neuron in here.neurons:
            await neuron.behave(garbage=kind)
        async with trio.open_nursery() as nursery:
            for path, stream in (*MIX, *MIX[:2]):
                nursery.start_soon(partial(here.client.ask, path, stream=stream))
        outcomes = here.ledger.outcomes[seen:]
        assert {outcome.kind for outcome in outcomes} <= {TOLD, REFUSED}, (kind, outcomes)
        statuses = {outcome.status for outcome in outcomes if outcome.kind == REFUSED}
        assert statuses <= {500, 502}, (kind, outcomes)
    for neuron in here.neurons:
        await neuron.behave()


async def test_garbage_to_polls_is_an_unhealthy_node(tmp_path):
    async with pair(tmp_path) as here:
        await here.neurons[0].behave(garbage="no-json", sick=True)
        await here.gateway.until_healthy(False, "node-0")
        node = await here.gateway.node("node-0")
        assert "JSON" in node["error"]
        await here.client.ask()
        await here.neurons[0].behave()
        await here.settled()
