"""Neurons behind a network that goes away without a word: no RST, no FIN."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
from fakes.programs import program, root

from chaos.fleet import fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import CUT, REFUSED, TOLD, WHOLE, Client, Ledger, load, until

pytestmark = pytest.mark.slow

NEAR, FAR = "198.18.213.1", "198.18.213.2"  # of the range for benchmarks (RFC 2544)


@attrs.frozen
class Network:
    """A namespace with a cable to it."""

    name: str

    def cable(self, state: str) -> None:
        ip("-n", self.name, "link", "set", "far", state)

    @property
    def prefix(self) -> tuple[str, ...]:
        return (program("ip"), "netns", "exec", self.name)


def ip(*words: str) -> None:
    done = subprocess.run([program("ip"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextmanager
def network() -> Iterator[Network]:
    root()
    name = f"chaos-{os.getpid()}"
    near = f"cha{os.getpid()}"[:15]
    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
        ip("addr", "add", f"{NEAR}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{FAR}/30", "dev", "far")
        for device in ("lo", "far"):
            ip("-n", name, "link", "set", device, "up")
        yield Network(name)
    finally:
        ip("netns", "del", name)  # the cable goes with it


async def test_a_node_that_is_cut_off_ends_its_streams_and_comes_back(tmp_path):
    ledger = Ledger()
    with network() as there:
        far = fake_neuron(tmp_path, 0, host=FAR, prefix=there.prefix)
        near = fake_neuron(tmp_path, 1)
        over = gateway(tmp_path, [far, near])
        client = Client(over.url, ledger)
        async with running([over], [far, near]):
            async with load(client):
                await until(ledger, 20, WHOLE)
            before = Baseline.of(over, [far, near])
            async with load(client, max_tokens=20):
                await until(ledger, 8, WHOLE)
                there.cable("down")
                # stall_seconds are 300: it is the kernel that finds out.
                await over.until_healthy(False, "node-0", seconds=40)
                with trio.fail_after(40):
                    while (await over.node("node-0"))["models"][0]["in_flight"]:
                        await trio.sleep(0.1)
                await until(ledger, 10, WHOLE)
                there.cable("up")
                await over.until_healthy(True, "node-0", seconds=30)
                await until(ledger, 10, WHOLE)
            assert not ledger.of(CUT), ledger.kinds
            assert ledger.of(TOLD, REFUSED)
            await settled(over, [far, near], ledger, before)
