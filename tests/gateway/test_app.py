from __future__ import annotations

import logging

import httpx
import pytest
import trio
from fakes.gateway import CHAT, MESSAGES, chat, gateway, message, payloads, text_of
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import GatewayConfig, GatewaySettings
from cortex.gateway import app
from cortex.gateway.upstream import Broken

ENTRY = CatalogueEntry("cold", source="org/cold", vram_mb=1000)
END = [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]


@pytest.fixture
def neuron() -> FakeNeuron:
    neuron = FakeNeuron("a")
    neuron.hold("m")
    return neuron


def hold_stream(neuron: FakeNeuron) -> trio.Event:
    """Streams wait for the event between their first word and their end."""
    go_on = trio.Event()
    frames = [chunk("m", {"content": "Hel"}), go_on, chunk("m", {"content": "lo"}), *END]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    return go_on


async def refuses(url: str) -> None:
    """Return when nobody accepts connections at *url* any more."""
    host, port = url.removeprefix("http://").split(":")
    while True:
        try:
            async with await trio.open_tcp_stream(host, int(port)):
                await trio.sleep(0.01)
        except OSError:
            return


async def test_stop_lets_a_running_stream_finish_and_its_metrics_be_read(neuron):
    go_on = hold_stream(neuron)
    with trio.fail_after(10):
        async with gateway(neuron, drain_seconds=5) as served:
            async with served.stream(chat(stream=True)) as reading:
                await reading.until(b"Hel")
                served.stop.set()
                await refuses(served.api)
                assert await served.total("cortex_in_flight") == 1
                assert not served.ended.is_set()
                go_on.set()
                stream = await reading.rest()
            assert text_of(stream) == "Hello"
            assert payloads(stream)[-1] == "[DONE]"
            await served.ended.wait()


async def test_the_drain_is_bounded_and_a_stream_it_cuts_does_not_look_finished(neuron, caplog):
    caplog.set_level(logging.INFO, "cortex.gateway.request")
    hold_stream(neuron)
    with trio.fail_after(10):
        async with gateway(neuron, drain_seconds=0.2) as served:
            async with served.stream(chat(stream=True)) as reading:
                await reading.until(b"Hel")
                served.stop.set()
                await served.ended.wait()
                with pytest.raises(Broken):
                    await reading.rest()
            assert b'finish_reason": "stop' not in reading.received
            assert b"[DONE]" not in reading.received
    (told,) = [r.cortex_fields for r in caplog.records if r.getMessage() == "request"]
    assert (told["code"], told["end"]) == (503, "draining")  # the client has not left


async def test_an_idle_client_does_not_hold_up_the_drain(neuron):
    with trio.fail_after(5):
        async with gateway(neuron, drain_seconds=60) as served:
            await served.client.get("/health")
            served.stop.set()
            await served.ended.wait()


async def test_a_client_that_does_not_read_does_not_hold_up_others_draining(neuron):
    go_on = hold_stream(neuron)
    with trio.fail_after(10):
        async with gateway(neuron, drain_seconds=1) as served:
            async with (
                served.stream(chat(stream=True)),
                served.stream(chat(stream=True)) as reading,
            ):
                await reading.until(b"Hel")
                served.stop.set()
                go_on.set()
                assert text_of(await reading.rest()) == "Hello"
            await served.ended.wait()


async def test_an_address_that_is_taken_is_an_error(neuron):
    with trio.fail_after(10):
        async with gateway(neuron) as served:
            taken = served.api.removeprefix("http://")
            settings = GatewaySettings(listen=taken, metrics_listen="127.0.0.1:0")
            with pytest.RaisesGroup(OSError, allow_unwrapped=True, flatten_subgroups=True):
                await app.run(GatewayConfig(settings), Catalogue(), stop=trio.sleep_forever)


async def test_a_gateway_without_a_neuron_starts_and_says_so():
    neuron = FakeNeuron("a", port=1)  # nobody listens there
    with trio.fail_after(10):
        async with gateway(neuron) as served:
            assert (await served.client.get("/health")).json()["status"] == "degraded"
            assert (await served.client.post(CHAT, json=chat())).status_code in (404, 503)


async def test_the_metrics_port_serves_metrics_and_nothing_else(neuron):
    with trio.fail_after(10):
        async with gateway(neuron) as served:
            answer = await served.client.get(f"{served.metrics}/metrics")
            assert answer.headers["content-type"].startswith("text/plain")
            other = await served.client.post(f"{served.metrics}{CHAT}", json=chat())
            assert other.status_code == 404
            assert (await served.client.get("/metrics")).status_code == 404


async def test_every_family_is_emitted_after_a_request_of_each_kind(neuron):
    neuron.model_loads = [
        {"id": "m", "in_flight": 0, "queue_depth": 0, "max_in_flight": 8, "max_queue_depth": 4}
    ]
    with trio.fail_after(15):
        async with gateway(neuron, models=(ENTRY,)) as served:
            neuron.scripts[CHAT] = failing_once()
            # The first fails, so that the neuron is looked at again: the load takes longer.
            for body in (chat(), chat("nope"), chat("cold"), chat(stream=True)):
                await served.streamed(body)
            for body in (message(), message(stream=True)):
                await served.streamed(body, MESSAGES)
            await served.streamed({"model": "m", "prompt": "x"}, "/v1/completions")
            hold_stream(neuron)
            async with served.stream(chat(stream=True)) as reading:
                await reading.until(b"Hel")
            await served.until(1, "cortex_client_disconnects_total")
            names = {name for name, _ in await served.samples()}
            dialects = ("openai-chat", "anthropic-messages", "openai-completions")
            for dialect in dialects:
                assert await served.total("cortex_requests_total", dialect=dialect, code="200")
            assert await served.total("cortex_requests_total", model="unknown", code="404") == 1
            assert await served.total("cortex_in_flight") == 0
            durations = await served.total("cortex_request_duration_seconds_sum")
            stages = await served.total("cortex_stage_seconds_sum")
            assert stages == pytest.approx(durations, rel=1e-6)
    assert {
        "cortex_requests_total",
        "cortex_request_duration_seconds_count",
        "cortex_request_errors_total",
        "cortex_cold_starts_total",
        "cortex_time_to_first_token_seconds_count",
        "cortex_tokens_per_second_count",
        "cortex_inter_token_seconds_count",
        "cortex_prompt_tokens_total",
        "cortex_completion_tokens_total",
        "cortex_cached_prompt_tokens_total",
        "cortex_stage_seconds_count",
        "cortex_in_flight",
        "cortex_neuron_up",
        "cortex_model_status",
        "cortex_model_load_seconds_count",
        "cortex_client_disconnects_total",
        "cortex_upstream_retries_total",
        "cortex_build_info",
        "cortex_model_in_flight",
        "cortex_device_vram_free_mb",
    } <= names


def failing_once():
    """The first request is told that the model is not there, the others are served."""
    asked_before: list[object] = []

    def script(asked):
        asked_before.append(asked)
        return error_reply(404, "model_not_found") if len(asked_before) == 1 else None

    return script


async def test_no_client_can_make_up_a_label(neuron):
    with trio.fail_after(10):
        async with gateway(neuron) as served:
            for name in ("nope", 'a"b', "x\ny", "m" * 5000):
                await served.client.post(CHAT, json=chat(name))
            neuron.scripts[CHAT] = lambda asked: error_reply(500, "made-up")
            await served.client.post(CHAT, json=chat())
            samples = await served.samples()
    models = {dict(labels).get("model") for _, labels in samples}
    reasons = {dict(labels)["reason"] for _, labels in samples if "reason" in dict(labels)}
    assert models <= {None, "m", "unknown"}
    assert reasons == {"model_not_found", "internal_error"}


async def test_after_the_end_nobody_listens(neuron):
    with trio.fail_after(10):
        async with gateway(neuron) as served:
            pass
        async with httpx.AsyncClient() as client:
            for url in (served.api, served.metrics):
                with pytest.raises(httpx.ConnectError):
                    await client.get(url)


async def loading_stream(path: str, body: dict, until: bytes) -> bytes:
    """What a client of *path* has seen when the model it waited for is loaded and has answered;
    it was not loaded before the client had seen *until*."""
    neuron = FakeNeuron("a", load_gate=trio.Event())
    pace = {"commit_after_seconds": 0.01, "keepalive_seconds": 0.02}
    asked = {**body, "model": "cold", "stream": True}
    with trio.fail_after(20):
        async with (
            gateway(neuron, models=(ENTRY,), **pace) as served,
            served.stream(asked, path) as reading,
        ):
            while "cold" not in neuron.models:
                await reading.some()  # keep-alives
            progress = {"stage": "weights", "bytes_done": 42, "bytes_total": 100}
            neuron.models["cold"]["progress"] = {**progress, "eta_seconds": 12.3}
            async with served.events() as events:
                await events.until("snapshot")
                while (await events.until("model_loading")).get("progress") != 0.42:
                    pass
            await reading.until(until)
            assert neuron.load_gate is not None
            neuron.load_gate.set()
            return await reading.rest()


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
async def test_a_stream_that_waits_for_a_load_is_told_how_far_it_is(path):
    body = {"input": "Hi"} if path.endswith("responses") else {**chat(), "prompt": "Hi"}
    received = await loading_stream(path, body, b"42%")
    assert b"\n: loading a weights 42% eta 12s\n\n" in b"\n" + received
    assert received.rpartition(b": loading")[2].count(b"data: ") > 1  # and then it was served


async def test_a_client_of_messages_gets_pings_while_a_model_is_loaded():
    received = await loading_stream(MESSAGES, message(), b"event: ping")
    assert b"event: ping" in received
    assert b": loading" not in received
    assert b"event: message_stop" in received
