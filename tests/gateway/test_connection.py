"""Connections to neurons: what the kernel is asked to watch for."""

from __future__ import annotations

import socket

import httpx
import trio
from fakes.neuron import FakeNeuron

from cortex.gateway.connection import PlainConnection, connect
from cortex.gateway.control import open_control
from cortex.service.silence import BREAKS_IN_SILENCE


def breaks_in_silence(sock: socket.socket) -> bool:
    return all(sock.getsockopt(*option[:2]) == option[2] for option in BREAKS_IN_SILENCE)


async def test_one_to_a_machine_that_has_gone_breaks(nursery):
    neuron = FakeNeuron()
    await nursery.start(neuron.run)
    connection = await connect("127.0.0.1", neuron.port, None)
    assert isinstance(connection, PlainConnection)
    assert breaks_in_silence(connection._sock)
    connection.close()


async def test_so_does_one_that_waits_for_a_load(nursery, monkeypatch):
    """httpx hands the options on; it keeps its sockets to itself."""
    neuron = FakeNeuron()
    await nursery.start(neuron.run)
    seen: list[socket.socket] = []
    opened = trio.open_tcp_stream

    async def open_and_note(*arguments, **options):
        stream = await opened(*arguments, **options)
        seen.append(stream.socket)
        return stream

    monkeypatch.setattr(trio, "open_tcp_stream", open_and_note)
    async with open_control(lambda _: neuron.configured()) as control:
        assert isinstance(control._client, httpx.AsyncClient)
        await control.models("fake")
        assert [breaks_in_silence(sock) for sock in seen] == [True]
