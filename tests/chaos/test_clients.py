"""Clients that vanish, stall, drip or flood."""

from __future__ import annotations

import json
import socket
import struct

import pytest
import trio

from chaos.fleet import DEMO, Gateway, demo_neuron, fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import CHAT, REFUSED, WHOLE, Client, Ledger, load, until
from chaos.neuron import MODEL

pytestmark = pytest.mark.slow

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


async def connected(over: Gateway, data: bytes, receive: int | None = None) -> trio.SocketStream:
    """A connection that has sent *data*; with a buffer of *receive* bytes for what comes back."""
    sock = trio.socket.socket()
    if receive is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    await sock.connect(("127.0.0.1", over.port))
    stream = trio.SocketStream(sock)
    await stream.send_all(data)
    return stream


def request(model: str, **fields: object) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
    data = json.dumps({**body, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def test_who_vanishes_in_a_stream_a_queue_or_a_load_leaves_nothing_behind(tmp_path):
    neuron, ledger = demo_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron])
    client = Client(over.url, ledger, model=DEMO)
    async with running([over], [neuron]):
        await client.ask()
        before = Baseline.of(over, [neuron])
        # Four of them run, eight wait at the neuron, the others in the gateway.
        long = request(DEMO, max_tokens=450, ignore_eos=True)
        gone = [await connected(over, long) for _ in range(24)]
        cold = [await connected(over, request("other")) for _ in range(3)]
        with trio.fail_after(10):
            while (await over.fleet())["waiting"].get(DEMO, 0) < 8:
                await trio.sleep(0.01)
        for number, stream in enumerate((*gone, *cold)):
            if number % 2:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            stream.socket.close()
        with trio.fail_after(20):  # the load goes on although nobody waits for it
            while await over.metric("cortex_model_status", model="other", status="loaded") != 1:
                await trio.sleep(0.05)
        (await over.client.post("/fleet/models/unload", json={"model": "other"})).raise_for_status()
        with trio.fail_after(10):
            while await over.metric("cortex_client_disconnects_total") < 16:
                await trio.sleep(0.05)
        # What such a request has used is on record, as one whose client left: not among the whole.
        await settled(over, [neuron], ledger, before, model=DEMO)


async def test_who_takes_no_data_loses_its_seat_and_delays_nobody(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron], settings="stall_seconds = 2\n")
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        await client.ask()
        before = Baseline.of(over, [neuron])
        await neuron.behave(gap=0.0)
        endless = request(MODEL, max_tokens=60_000)
        deaf = [await connected(over, endless, receive=4096) for _ in range(2)]
        async with load(client, clients=2):
            await until(ledger, 10, WHOLE)
        with trio.fail_after(40):
            while await over.metric("cortex_in_flight"):
                await trio.sleep(0.1)
        assert "client_stalled" in over.log
        for stream in deaf:
            await stream.aclose()
        await neuron.behave()
        await settled(over, [neuron], ledger, before)


async def test_who_drips_its_request_holds_a_connection_and_nothing_else(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron])
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        await client.ask()
        before = Baseline.of(over, [neuron])
        whole = request(MODEL)
        shares = (10, len(whole) // 3, whole.index(b"\r\n\r\n") + 4, len(whole) - 1)
        slow = [await connected(over, whole[: shares[n % 4]]) for n in range(200)]
        async with load(client, clients=4):
            await until(ledger, 20, WHOLE)
        assert await over.metric("cortex_in_flight") == 0
        assert over.descriptors(but_to=before.ports) >= before.descriptors + 200
        for stream in slow:
            await stream.aclose()
        await settled(over, [neuron], ledger, before)


async def test_a_flood_is_refused_and_grows_nothing(tmp_path):
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron], settings="queue_depth = 8\n")
    client = Client(over.url, ledger)
    async with running([over], [neuron]):
        await neuron.behave(capacity=4, gap=0.05)
        await client.ask()
        with trio.fail_after(10):
            while await over.metric("cortex_model_max_in_flight") != 4:
                await trio.sleep(0.05)
        before = Baseline.of(over, [neuron])
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(150):
                    stream = number % 2 == 0
                    nursery.start_soon(lambda s=stream: client.ask(stream=s))
        refused = ledger.of(REFUSED)
        assert {outcome.status for outcome in refused} == {429}
        assert len(refused) > 200
        assert len(ledger.of(WHOLE)) >= 2 * (4 + 8)
        assert len(refused) + len(ledger.of(WHOLE)) == len(ledger.outcomes)
        await neuron.behave()
        await settled(over, [neuron], ledger, before)
