from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import trio
from fakes.neuron import FakeNeuron, Reply, error_reply, json_reply

from cortex import errors
from cortex.config.gateway import NeuronNode
from cortex.gateway import control as control_module
from cortex.gateway.control import open_control
from cortex.wire import neuron as wire


@pytest.fixture
async def neuron(nursery) -> FakeNeuron:
    fake = FakeNeuron("a", token="s3cret")
    await nursery.start(fake.run)
    return fake


def nodes(neuron: FakeNeuron, **fields) -> Callable[[str], NeuronNode]:
    return {"a": NeuronNode("a", neuron.url, **{"token": neuron.token, **fields})}.__getitem__


async def test_each_call_is_typed_and_carries_the_nodes_token(neuron):
    neuron.hold("org/m", vram_used_mb=5)
    async with open_control(nodes(neuron)) as control:
        assert (await control.discovery("a")).hostname == "a"
        assert (await control.version("a")).version == "0.0-fake"
        assert (await control.health("a")).devices[0].vram_free_mb == 20_000
        assert await control.models("a") == (
            wire.Model("org/m", "loaded", devices=(0,), vram_used_mb=5),
        )
        assert await control.endpoint("a", "org/m") == neuron.url
        assert await control.tokenize("a", {"text": "x"}) == {"count": 2}
    assert {asked.headers["authorization"] for asked in neuron.requests} == {"Bearer s3cret"}
    assert neuron.counts["/models/org/m/endpoint"] == 1


async def test_load_and_unload_say_what_is_set_and_nothing_else(neuron):
    async with open_control(nodes(neuron)) as control:
        answer = await control.load("a", wire.LoadRequest("m", source="org/m", devices=(0,)))
        assert answer.model is not None
        assert answer.model.id == "m"
        await control.unload("a", "m")
    bodies = [asked.json for asked in neuron.requests]
    assert bodies == [{"model_id": "m", "source": "org/m", "devices": [0]}, {"model_id": "m"}]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "model_not_found", errors.ModelNotFound),
        (409, "conflict", errors.Conflict),
        (422, "bad_checkpoint", errors.CheckpointError),
        (422, "unsupported_model", errors.UnsupportedModel),
        (503, "insufficient_memory", errors.DeviceOutOfMemory),
        (503, "service_unavailable", errors.Unavailable),
        # The neuron's quarrel with the gateway, or its own bug, is no client's fault.
        (401, "invalid_api_key", errors.UpstreamError),
        (403, "permission_error", errors.UpstreamError),
        (500, "internal_error", errors.UpstreamError),
        (302, "moved", errors.UpstreamError),
    ],
)
async def test_a_neurons_error_keeps_its_class_and_its_words(neuron, status, code, expected):
    neuron.scripts["/models/load"] = lambda asked: error_reply(
        status, code, "because", retry_after=7
    )
    async with open_control(nodes(neuron)) as control:
        with pytest.raises(errors.CortexError, match="neuron a: because") as caught:
            await control.load("a", wire.LoadRequest("m"))
    assert type(caught.value) is expected
    if expected is errors.DeviceOutOfMemory:
        assert caught.value.retry_after == 7


async def test_a_redirect_is_not_followed(neuron):
    target = FakeNeuron("elsewhere")
    async with trio.open_nursery() as nursery:
        await nursery.start(target.run)
        neuron.scripts["/health"] = lambda asked: Reply(
            307, headers=(("location", target.url + "/health"),)
        )
        async with open_control(nodes(neuron)) as control:
            with pytest.raises(errors.UpstreamError):
                await control.health("a")
        assert target.requests == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(frames=(b"not json",)),
        Reply(frames=(b"",)),
        json_reply({"uptime_secs": "long"}),
        json_reply([]),
        Reply(frames=(b'{"uptime_secs": 1',), abort=True),
    ],
)
async def test_an_answer_that_is_none_is_the_upstreams_error(neuron, reply):
    neuron.scripts["/health"] = lambda asked: reply
    async with open_control(nodes(neuron)) as control:
        with pytest.raises(errors.UpstreamError):
            await control.health("a")


async def test_an_answer_without_end_is_cut_off(neuron, monkeypatch):
    monkeypatch.setattr(control_module, "MAX_ANSWER", 100_000)
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"x" * 10_000

    neuron.scripts["/models"] = lambda asked: Reply(frames=endless())
    async with open_control(nodes(neuron)) as control:
        with pytest.raises(errors.UpstreamError, match="larger than"):
            await control.models("a")
    assert len(sent) < 1000


async def test_a_refused_connection_is_the_upstreams_error():
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with open_control({"a": NeuronNode("a", url)}.__getitem__) as control:
            with pytest.raises(errors.UpstreamError, match="cannot be reached"):
                await control.health("a")


async def test_a_node_is_reached_as_it_is_configured_at_the_time_of_the_call(neuron):
    known = {"a": NeuronNode("a", "http://127.0.0.1:1", token="wrong")}
    async with open_control(known.__getitem__) as control:
        known["a"] = NeuronNode("a", neuron.url, token=neuron.token)
        assert (await control.version("a")).version == "0.0-fake"
        del known["a"]
        with pytest.raises(errors.UpstreamError, match="not configured any more"):
            await control.version("a")


async def test_polls_are_bounded_and_loads_are_not(patient_clock, nursery):
    neuron = FakeNeuron("a", load_gate=trio.Event())
    await nursery.start(neuron.run)
    never = trio.Event()
    neuron.scripts["/health"] = lambda asked: Reply(frames=(never,))
    async with open_control(nodes(neuron)) as control:
        started = trio.current_time()
        with pytest.raises(errors.UpstreamError):
            await control.health("a")
        assert trio.current_time() - started < control_module.READ_SECONDS + 1

        async def open_gate() -> None:
            await trio.sleep(3600)
            neuron.load_gate.set()

        nursery.start_soon(open_gate)
        answer = await control.load("a", wire.LoadRequest("m"))
        assert answer.status == "loaded"


async def test_a_message_from_outside_is_made_printable(neuron):
    body = json.dumps({"error": {"message": "a\x1b[31m\r\nb" * 500, "code": "conflict"}})
    neuron.scripts["/models/load"] = lambda asked: Reply(409, (body.encode(),))
    async with open_control(nodes(neuron)) as control:
        with pytest.raises(errors.Conflict) as caught:
            await control.load("a", wire.LoadRequest("m"))
    assert caught.value.message.isprintable()
