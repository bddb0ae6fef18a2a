"""The API behind a certificate, and reloads that change it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from fakes.gateway import CHAT, chat, gateway, text_of
from fakes.neuron import FakeNeuron, Reply, chunk
from fakes.tls import pem, trusting

from cortex.config.catalogue import CatalogueEntry
from cortex.service.expiry import not_after

ENTRY = CatalogueEntry("m", vram_mb=1000)
END = [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A certificate with its key, which clients of the test trust."""
    file = tmp_path / "certificate.pem"
    file.write_bytes(pem("one").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem("one")))
    return file


@pytest.fixture
async def served(file):
    neuron = FakeNeuron("a")
    with trio.fail_after(20):
        async with gateway(neuron, models=(ENTRY,), tls_certificate=file, tls_key=file) as running:
            yield running, neuron


async def shows(running, name: str) -> bool:
    """Whether a new connection is shown the certificate *name*."""
    async with httpx.AsyncClient(verify=trusting(name)) as client:
        try:
            answer = await client.get(f"{running.api}/health")
        except httpx.ConnectError:  # a test that counts on it sees the other one shown too
            return False
    assert answer.status_code == 200
    return True


async def test_answers_and_streams_come_over_https_and_metrics_do_not(served):
    running, _ = served
    assert running.api.startswith("https://127.0.0.1:")
    assert running.metrics.startswith("http://")
    assert await shows(running, "one")
    assert not await shows(running, "two")
    assert (await running.client.post(CHAT, json=chat())).status_code == 200
    assert text_of(await running.streamed(chat(stream=True))) == "Hello, world"
    with pytest.raises(httpx.RemoteProtocolError):
        await running.client.get(running.api.replace("https", "http") + "/health")


async def test_a_reload_reads_the_certificate_again_under_a_running_stream(served, file):
    running, neuron = served
    go_on = trio.Event()
    frames = [chunk("m", {"content": "Hel"}), go_on, chunk("m", {"content": "lo"}), *END]
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with running.stream(chat(stream=True)) as reading:
        await reading.until(b"Hel")
        file.write_bytes(pem("two").read_bytes())
        assert await shows(running, "one")  # nothing is read before it is told to
        answer = await running.client.post("/fleet/reload")
        assert (answer.status_code, answer.json()["plan"]["needs_restart"]) == (200, [])
        assert await shows(running, "two")
        assert not await shows(running, "one")
        go_on.set()
        assert text_of(await reading.rest()) == "Hello"


async def test_the_metrics_tell_until_when_the_certificate_is_valid(served, file):
    running, _ = served

    async def told() -> float:
        lines = (await running.client.get(f"{running.metrics}/metrics")).text.splitlines()
        name = "cortex_tls_certificate_expiry_timestamp_seconds "
        (value,) = [line.removeprefix(name) for line in lines if line.startswith(name)]
        return float(value)

    assert await told() == not_after(pem("one").read_text()).timestamp()
    file.write_bytes(pem("brief").read_bytes())
    await running.client.post("/fleet/reload")
    assert await told() == not_after(pem("brief").read_text()).timestamp()


async def test_other_paths_take_effect_at_once(served):
    running, _ = served
    running.files.settings(tls_certificate=pem("two"), tls_key=pem("two"))
    plan = (await running.client.post("/fleet/reload")).json()["plan"]
    assert [(each["key"], each["needs_restart"]) for each in plan["settings"]] == [
        ("gateway.tls_certificate", False),
        ("gateway.tls_key", False),
    ]
    assert plan["settings"][0]["after"] == str(pem("two"))
    assert await shows(running, "two")


async def test_files_that_do_not_fit_change_nothing(served, file):
    running, _ = served
    running.files.settings(tls_key=pem("two"), queue_depth=7)
    for query in ("?dry_run=true", ""):
        answer = await running.client.post(f"/fleet/reload{query}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_configuration")
        assert error["message"] == (
            f"configuration: gateway.tls_key: {pem('two')}: is not the key of the certificate in "
            f"{file}"
        )
    assert await shows(running, "one")
    running.files.settings(tls_key=file)
    (change,) = (await running.client.post("/fleet/reload")).json()["plan"]["settings"]
    assert change["key"] == "gateway.queue_depth"  # which the refused one had not put in force


async def test_switching_it_off_or_on_needs_a_restart(served):
    running, _ = served
    running.files.settings(tls_certificate=None, tls_key=None)
    for _ in range(2):  # told each time
        plan = (await running.client.post("/fleet/reload")).json()["plan"]
        assert plan["needs_restart"] == ["gateway.tls_certificate", "gateway.tls_key"]
    assert await shows(running, "one")
    async with gateway(FakeNeuron("b")) as plain:
        plain.files.settings(tls_certificate=pem("one"), tls_key=pem("one"))
        plan = (await plain.client.post("/fleet/reload")).json()["plan"]
        assert plan["needs_restart"] == ["gateway.tls_certificate", "gateway.tls_key"]
        assert (await plain.client.get("/health")).status_code == 200
