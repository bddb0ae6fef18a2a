"""The application as it is started: one whole neuron, from its port to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from fakes.demo_neuron import DEMO, DemoNeuron, chunks_of, demo_neuron, eventually, user

from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.neuron import app

LONG = "word and word or " * 3000  # some seconds of prefill on a slow core


def idle(neuron: DemoNeuron) -> bool:
    """No completion, no block of the cache in use."""
    load = neuron.load_figures()
    return (load["in_flight"], load["queue_depth"], load["kv_blocks_used"]) == (0, 0, 0)


def busy(neuron: DemoNeuron, **figures: int) -> bool:
    load = neuron.load_figures()
    return all(load[key] >= least for key, least in figures.items())


@contextmanager
def running(neuron: DemoNeuron) -> Iterator[None]:
    """A completion that is generated until the end of the block."""
    with neuron.streaming(ignore_eos=True) as response:
        chunks = chunks_of(response.iter_lines())  # held: closing it would close the response
        for _ in range(3):
            next(chunks)
        assert busy(neuron, in_flight=1)
        yield


def leave_after(neuron: DemoNeuron, reached: Any, **fields: Any) -> float:
    """Ask with *fields* and leave once *reached*; seconds until the neuron is idle again."""
    with neuron.streaming(**fields) as response:
        assert response.status_code == 200
        reached(response)
    left = time.monotonic()
    eventually(lambda: idle(neuron), 5.0, "the neuron is idle")
    return time.monotonic() - left


def test_a_client_that_leaves_mid_stream_frees_its_blocks_within_a_second(
    demo: DemoNeuron,
) -> None:
    aborted = f'neuron_requests_aborted_total{{model="{DEMO}"}}'
    before = demo.metric(aborted)

    def some(response: httpx.Response) -> None:
        chunks = chunks_of(response.iter_lines())
        for _ in range(5):
            next(chunks)
        assert busy(demo, in_flight=1, kv_blocks_used=1)

    assert leave_after(demo, some, ignore_eos=True) < 1.0
    assert demo.metric(aborted) == before + 1


def test_a_client_that_leaves_in_prefill_frees_its_blocks_within_a_second(
    demo: DemoNeuron,
) -> None:
    def prefilling(_: httpx.Response) -> None:
        eventually(lambda: busy(demo, kv_blocks_used=1), 5.0, "the prefill has begun")

    assert leave_after(demo, prefilling, messages=user(LONG)) < 1.0


def test_a_client_that_leaves_without_a_stream_frees_its_blocks_too(demo: DemoNeuron) -> None:
    body = {"model": DEMO, "messages": user("hi"), "ignore_eos": True}
    with httpx.Client(base_url=demo.url, timeout=0.4) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body)
    eventually(lambda: idle(demo), 1.0, "the neuron is idle")


def test_a_client_that_leaves_the_queue_frees_its_seat(small: DemoNeuron) -> None:
    with running(small):
        for _ in range(4):  # two may wait: a seat that were kept would show as a 503
            with small.streaming(ignore_eos=True) as queued:
                assert queued.status_code == 200, queued.read()
                eventually(lambda: busy(small, in_flight=1, queue_depth=1), 2.0, "it is queued")
            eventually(lambda: small.load_figures()["queue_depth"] == 0, 1.0, "it is gone")
    eventually(lambda: idle(small), 1.0, "the neuron is idle")
    assert small.chat(max_tokens=1)["choices"]


def test_beyond_running_and_queued_a_request_is_refused_and_counted(small: DemoNeuron) -> None:
    rejected = f'neuron_requests_rejected_total{{model="{DEMO}"}}'
    before = small.metric(rejected)
    body = {"messages": user("hi"), "max_tokens": 1}
    with (
        small.streaming(ignore_eos=True) as one,
        small.streaming(ignore_eos=True) as two,
        small.streaming(ignore_eos=True) as three,
    ):
        assert [each.status_code for each in (one, two, three)] == [200] * 3
        refused = small.ask("/v1/chat/completions", body)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    assert small.metric(rejected) == before + 1
    eventually(lambda: idle(small), 1.0, "the neuron is idle")
    assert small.ask("/v1/chat/completions", body).status_code == 200


def test_the_status_is_sent_while_a_request_still_waits(small: DemoNeuron) -> None:
    """Admitted is committed: the role chunk comes before the engine has time for it."""
    with running(small), small.streaming() as queued:
        chunks = chunks_of(queued.iter_lines())
        assert next(chunks)["choices"][0]["delta"]["role"] == "assistant"
        eventually(lambda: busy(small, in_flight=1, queue_depth=1), 1.0, "it waits")


def test_stopping_lets_streams_end_and_takes_nothing_new(tmp_path: Path) -> None:
    with demo_neuron(tmp_path) as neuron:
        thread = neuron.thread
        with neuron.streaming(ignore_eos=True, max_tokens=200) as response:
            chunks = chunks_of(response.iter_lines())
            next(chunks)
            neuron.stop()
            eventually(lambda: refuses(neuron), 2.0, "nothing new is taken")
            rest = list(chunks)
        assert rest[-1] == "[DONE]"
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        thread.join(10)
        assert not thread.is_alive()


def refuses(neuron: DemoNeuron) -> bool:
    """Whether a new client is turned away."""
    body = {"model": DEMO, "messages": user("hi"), "max_tokens": 1}
    try:
        with httpx.Client(base_url=neuron.url, timeout=5) as client:
            return client.post("/v1/chat/completions", json=body).status_code == 503
    except httpx.TransportError:
        return True


async def test_the_listener_is_there_before_the_model_is(tmp_path: Path) -> None:
    config = NeuronConfig(
        listen="127.0.0.1:0",
        default_models=(DefaultModel(DEMO), DefaultModel("no/such", source=str(tmp_path / "no"))),
        state_directory=tmp_path,
        threads=1,
        offline=True,
    )
    stop = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(app.run, config, stop=stop.wait))
            async with httpx.AsyncClient(base_url=url) as client:
                health = (await client.get("/health")).json()
                assert health["activation"]["state"] == "pre_warming"
                while health["activation"]["state"] != "ready":
                    await trio.sleep(0.02)
                    health = (await client.get("/health")).json()
                assert health["activation"]["completed"] == [DEMO]
                (failed,) = health["activation"]["failed"]
                assert failed["model_id"] == "no/such"
                assert failed["error"]
            stop.set()


async def test_a_port_that_is_taken_is_an_error_at_once(tmp_path: Path) -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    config = NeuronConfig(listen=f"127.0.0.1:{port}", state_directory=tmp_path, threads=1)
    with pytest.raises(OSError, match="in use"):
        await app.run(config, stop=trio.sleep_forever)
    await listener[0].aclose()
