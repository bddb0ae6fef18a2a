"""A gateway under attack while somebody else's stream goes on."""

from __future__ import annotations

import itertools

import pytest
import trio
from fakes.gateway import CHAT, LANES, chat, gateway, lane_fixture, text_of
from fakes.neuron import FakeNeuron, Reply, chunk


def _counting(asked):
    """Whoever asks for numbers gets them, one after the other, until he leaves."""
    if asked.json["messages"][0]["content"] != "count":
        return None

    def frames():
        for number in itertools.count():
            yield chunk("m", {"content": f"{number} "})
            yield 0.005

    return Reply(frames=frames(), content_type="text/event-stream")


@pytest.fixture(autouse=True, params=LANES)
def lane(request, monkeypatch) -> str:
    """The lane that serves the hot routes: everything holds on either."""
    return lane_fixture(request, monkeypatch)


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    neuron.scripts[CHAT] = _counting
    return neuron


@pytest.fixture
async def attacked(neuron, lane):
    """The gateway. After the test a good request is answered, and the stream that went on all the
    while has lost nothing and was not cut."""
    with trio.fail_after(30):
        async with gateway(neuron, max_body_mb=1) as served:
            body = chat(stream=True, messages=[{"role": "user", "content": "count"}])
            async with served.stream(body) as other, trio.open_nursery() as nursery:
                await other.until(b'"0 "')
                nursery.start_soon(other.rest)
                yield served
                assert (await served.client.post(CHAT, json=chat())).status_code == 200
                before = other.received.count(b"data:")
                while other.received.count(b"data:") < before + 3:
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
            whole = other.received[: other.received.rfind(b"\n\n") + 2]
            numbers = text_of(whole).split()
            assert numbers == [str(n) for n in range(len(numbers))]
