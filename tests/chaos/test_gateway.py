"""The gateway itself: killed and restarted under load, drained, and two of them over one neuron."""

from __future__ import annotations

import signal

import pytest
import trio
from click.testing import CliRunner

from chaos.fleet import DEMO, demo_neuron, fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import CUT, REFUSED, TOLD, UNREACHED, WHOLE, Client, Ledger, load, until
from chaos.neuron import MODEL
from cortex.cli.main import cli

pytestmark = pytest.mark.slow


async def test_killed_under_load_it_comes_back_with_keys_pins_and_exact_usage(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron])
    place = str(tmp_path / "gateway.state")
    made = CliRunner().invoke(cli, ["keys", "add", "one", "--state-directory", place])
    assert made.exit_code == 0, made.output
    key = made.stdout.split()[-1]
    client, stranger = Client(over.url, ledger, key=key), Client(over.url, Ledger(), key="sk-none")
    async with running([over], [neuron]):
        order = {"model": MODEL, "node": "node-0"}
        (await over.client.post("/fleet/models/pin", json=order)).raise_for_status()
        async with load(client):
            for _ in range(2):
                await until(ledger, 20, WHOLE)
                before = Baseline.of(over, [neuron])
                await over.kill()
                await until(ledger, 1, UNREACHED)
                await over.start()
            await until(ledger, 20, WHOLE)
        assert not ledger.of(REFUSED, TOLD), ledger.kinds
        assert (await stranger.ask()).status == 401
        assert (await over.fleet())["pins"] == [order]
        await settled(over, [neuron], ledger, before, key=key, restarted=True)


async def test_told_to_stop_under_load_it_cuts_no_stream(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron])
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        async with trio.open_nursery() as nursery:
            for number in range(12):
                stream = number % 3 != 0
                nursery.start_soon(lambda s=stream: client.ask(stream=s, max_tokens=150))
            with trio.fail_after(10):
                while await neuron.in_flight() < 12:
                    await trio.sleep(0.02)
            over.signal(signal.SIGTERM)
            await over.until_said("draining")
            late = await Client(over.url, Ledger()).ask()
        assert ledger.kinds == {WHOLE: 12}
        assert late.kind == UNREACHED
        assert await over.ended() == 0
        assert await neuron.in_flight() == 0


async def test_two_gateways_share_a_neuron(tmp_path):
    """Neither knows what the other one sends: the neuron's own bound is what both run into."""
    neuron = demo_neuron(tmp_path)
    both = [gateway(tmp_path, [neuron], name) for name in ("one", "two")]
    ledgers = [Ledger(), Ledger()]
    clients = [
        Client(over.url, ledger, model=DEMO) for over, ledger in zip(both, ledgers, strict=True)
    ]
    async with running(both, [neuron]):
        for client in clients:
            await client.ask()
        before = [Baseline.of(over, [neuron]) for over in both]
        async with load(clients[0], 12, max_tokens=30), load(clients[1], 12, max_tokens=30):
            await until(ledgers[0], 30, WHOLE, seconds=40)
            await until(ledgers[1], 30, WHOLE, seconds=40)
        for over, ledger, held in zip(both, ledgers, before, strict=True):
            assert not ledger.of(CUT, TOLD), ledger.kinds
            assert all(refused.status in (429, 529) for refused in ledger.of(REFUSED))
            await settled(over, [neuron], ledger, held, model=DEMO)
