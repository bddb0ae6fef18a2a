"""A gateway that may open no more files."""

from __future__ import annotations

import httpx
import pytest
import trio
from fakes.programs import program

from chaos.fleet import fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import CHAT, WHOLE, Client, Ledger, Outcome, load, until
from chaos.neuron import MODEL

pytestmark = pytest.mark.slow

LIMIT = 100
WATCHED_SECONDS = 3.0


async def test_out_of_descriptors_it_waits_without_spinning_and_recovers(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    prefix = (program("prlimit"), f"--nofile={LIMIT}:{LIMIT}")
    over = gateway(tmp_path, [neuron], prefix=prefix)
    client = Client(over.url, ledger)
    async with running([over], [neuron]), httpx.AsyncClient(base_url=over.url) as kept:
        await kept.get("/livez")
        async with load(client, clients=2):
            await until(ledger, 10, WHOLE)
        before = Baseline.of(over, [neuron])
        many = [await trio.open_tcp_stream("127.0.0.1", over.port) for _ in range(LIMIT + 50)]
        await over.until_said("no connection can be accepted")
        # Whoever is connected is served, by a connection to the node that is there already.
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        served = await kept.post(CHAT, json=body)
        assert served.status_code == 200
        reading = served.json()["usage"]
        ledger.outcomes.append(
            Outcome(WHOLE, 200, reading["prompt_tokens"], reading["completion_tokens"])
        )
        spent, lines = over.cpu_seconds(), over.log.count("no connection can be accepted")
        await trio.sleep(WATCHED_SECONDS)
        assert over.cpu_seconds() - spent < WATCHED_SECONDS / 2
        assert over.log.count("no connection can be accepted") - lines <= 2
        assert over.alive
        for stream in many:
            await stream.aclose()
        async with load(client, clients=2):
            await until(ledger, 10, WHOLE)
        assert ledger.kinds.keys() == {WHOLE}
        assert "not healthy" not in over.log  # it was not the node's fault
        assert (await over.node("node-0"))["circuit"] == "closed"
        await settled(over, [neuron], ledger, before)
