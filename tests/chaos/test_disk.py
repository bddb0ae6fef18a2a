"""Disks that are full: for what the gateway keeps, and for its log."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from fakes.programs import program, root

from chaos.fleet import Gateway, fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import WHOLE, Client, Ledger, load, until
from chaos.neuron import MODEL

pytestmark = pytest.mark.slow

# In a mount namespace of its own: a disk of 1 MiB at $0, and standard error in a file there.
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=1m none "$0" && exec "$@" 2>"$0/stderr"'
PIN = "/fleet/models/pin"


def on_a_small_disk(folder: Path) -> tuple[str, ...]:
    root()
    folder.mkdir()
    return (program("unshare"), "-m", program("sh"), "-c", ON_A_SMALL_DISK, str(folder))


def fill(over: Gateway) -> Path:
    """Leave no byte on its disk; the file that takes the room."""
    path = over.state / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return path


async def test_a_full_disk_stops_no_request_and_loses_no_usage(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    disk = on_a_small_disk(tmp_path / "gateway.state")
    over = gateway(tmp_path, [neuron], prefix=disk, mounts=True)
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        async with load(client):
            await until(ledger, 10, WHOLE)
            before = Baseline.of(over, [neuron])
            ballast = fill(over)
            await until(ledger, 40, WHOLE)
            # The journal may still have room in its last block; what the database wants has not.
            refused = await over.client.post(PIN, json={"model": MODEL})
            assert refused.status_code == 500
            assert "cannot be stored" in refused.json()["error"]["message"]
            with trio.fail_after(10):
                while not await over.metric("cortex_usage_write_failures_total"):
                    await trio.sleep(0.1)
            said = (over.state / "stderr").read_text()
            await until(ledger, 40, WHOLE)
            ballast.unlink()
            await until(ledger, 20, WHOLE)
            assert (await over.client.post(PIN, json={"model": MODEL})).status_code == 200
        assert ledger.kinds.keys() == {WHOLE}
        await settled(over, [neuron], ledger, before)
        assert await over.metric("cortex_usage_lost_requests_total") == 0
        # The log was on that disk too: it goes on with whole lines.
        lines = (over.state / "stderr").read_text()[len(said) :].splitlines()
        assert len(lines) > 10
        assert " gateway.request " in lines[-1]
        over.signal(signal.SIGTERM)
        assert await over.ended() == 0


async def test_a_log_that_takes_nothing_stops_no_request(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron], stderr=Path("/dev/full"))
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        await client.ask()
        before = Baseline.of(over, [neuron])
        async with load(client):
            await until(ledger, 100, WHOLE)
        assert ledger.kinds.keys() == {WHOLE}
        await settled(over, [neuron], ledger, before)
        over.signal(signal.SIGTERM)
        assert await over.ended() == 0
