"""Web pages of other origins, at a whole gateway, over both lanes."""

from __future__ import annotations

import httpx
import pytest
import trio
from fakes.accounts import add_key
from fakes.gateway import CHAT, MESSAGES, chat, gateway, message, text_of
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply

from cortex.config.accounts import AuthSettings

PAGE = "https://chat.example.org"
OTHER = "http://localhost:3000"
EVIL = "https://evil.example"
ORIGINS = (PAGE, OTHER)
ANYBODY = AuthSettings(anonymous=True)  # a page without a key is refused otherwise
RESPONSES = "/v1/responses"
ROUTES = (CHAT, MESSAGES, RESPONSES, "/v1/embeddings", "/v1/models", "/v1/models/m", "/health")
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,anthropic-version",
}


@pytest.fixture
async def served():
    neuron = FakeNeuron("a")
    neuron.hold("m")
    with trio.fail_after(20):
        async with gateway(neuron, cors_origins=ORIGINS, auth=ANYBODY) as running:
            await running.until(1, "cortex_model_status", model="m", status="loaded")
            yield running, neuron


def told(response: httpx.Response) -> dict[str, str]:
    """What the answer says about other origins."""
    return {
        name: value
        for name, value in response.headers.items()
        if name.startswith("access-control-") or name == "vary"
    }


def assert_readable(response: httpx.Response, origin: str = PAGE) -> None:
    found = told(response)
    assert found["access-control-allow-origin"] == origin
    assert found["vary"] == "origin"
    exposed = found["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-request-id", "request-id", "x-should-retry"} <= set(exposed)
    assert "access-control-allow-credentials" not in found


@pytest.mark.parametrize("path", ROUTES)
async def test_a_preflight_is_answered_without_a_key(tmp_path, path):
    add_key(tmp_path, "alice")
    async with gateway(cors_origins=ORIGINS, state_directory=tmp_path) as running:
        answer = await running.client.options(path, headers=PREFLIGHT)
        assert answer.status_code == 204
        assert_readable(answer)
        allowed = answer.headers["access-control-allow-headers"]
        assert allowed == "anthropic-version, authorization, content-type"
        methods = answer.headers["access-control-allow-methods"].split(", ")
        assert ("POST" if path in ROUTES[:4] else "GET") in methods
        assert answer.headers["access-control-max-age"] == "600"


async def test_a_refused_key_can_be_read(tmp_path):
    add_key(tmp_path, "alice")
    async with gateway(cors_origins=ORIGINS, state_directory=tmp_path) as running:
        for path in (CHAT, MESSAGES, RESPONSES):
            answer = await running.client.post(path, json=chat(), headers={"origin": PAGE})
            assert answer.status_code == 401
            assert_readable(answer)


async def test_a_named_page_still_needs_a_key_where_only_this_machine_needs_none():
    async with gateway(cors_origins=ORIGINS) as running:
        answer = await running.client.post(CHAT, json=chat(), headers={"origin": PAGE})
        assert answer.status_code == 403
        assert_readable(answer)


async def test_rate_limits_can_be_read(tmp_path):
    key = add_key(tmp_path, "alice", rpm=60)
    neuron = FakeNeuron("a")
    neuron.hold("m")
    headers = {"origin": PAGE, "x-api-key": key}
    async with gateway(neuron, cors_origins=ORIGINS, state_directory=tmp_path) as running:
        await running.until(1, "cortex_model_status", model="m", status="loaded")
        for path, body, limit in (
            (CHAT, chat(), "x-ratelimit-limit-requests"),
            (MESSAGES, message(), "anthropic-ratelimit-requests-limit"),
        ):
            answer = await running.client.post(path, json=body, headers=headers)
            assert answer.status_code == 200
            assert limit in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ORIGINS)
async def test_answers_of_every_dialect_name_the_origin(served, origin):
    running, _ = served
    headers = {"origin": origin}
    for path, body in ((CHAT, chat()), (MESSAGES, message()), (RESPONSES, None)):
        asked = body or {"model": "m", "input": "Hi"}
        answer = await running.client.post(path, json=asked, headers=headers)
        assert answer.status_code == 200
        assert_readable(answer, origin)
    models = await running.client.get("/v1/models", headers=headers)
    assert models.status_code == 200
    assert_readable(models, origin)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (MESSAGES, message)])
async def test_streams_do(served, path, body):
    running, _ = served
    async with running.client.stream(
        "POST", path, json=body(stream=True), headers={"origin": PAGE}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert_readable(answer)
        assert b"world" in await answer.aread()


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_do(served, stream):
    running, neuron = served
    neuron.scripts[CHAT] = lambda asked: error_reply(400, "context_length_exceeded")
    headers = {"origin": PAGE}
    for path, body in ((CHAT, chat), (MESSAGES, message)):
        for asked, status in (
            (body(stream=stream), 400),
            (body("nope", stream=stream), 404),
            ({"model": 1, "stream": stream}, 400),
        ):
            answer = await running.client.post(path, json=asked, headers=headers)
            assert answer.status_code == status
            assert_readable(answer)
    answer = await running.client.put(CHAT, headers=headers)
    assert answer.status_code == 405
    assert_readable(answer)


async def test_pages_that_nobody_has_named_are_told_nothing(served):
    running, _ = served
    for origin in (EVIL, "null", f"{PAGE}.evil.example", PAGE.upper()):
        preflight = await running.client.options(CHAT, headers=PREFLIGHT | {"origin": origin})
        answer = await running.client.post(CHAT, json=chat(), headers={"origin": origin})
        assert (preflight.status_code, answer.status_code) == (204, 200)
        assert told(preflight) == told(answer) == {"vary": "origin"}
    assert told(await running.client.post(CHAT, json=chat())) == {"vary": "origin"}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/fleet"), ("POST", "/fleet/reload"), ("GET", "/fleet/nope"), ("GET", "/nope")],
)
async def test_the_fleets_routes_are_told_to_no_page(served, method, path):
    running, _ = served
    asked = PREFLIGHT | {"access-control-request-method": method}
    assert told(await running.client.options(path, headers=asked)) == {}
    for origin in ORIGINS:
        answer = await running.client.request(method, path, headers={"origin": origin})
        assert told(answer) == {}
    # A page of this machine's may send a request, as before; it cannot read what comes back.


async def test_nothing_is_said_where_no_origin_is_configured():
    neuron = FakeNeuron("a")
    neuron.hold("m")
    async with gateway(neuron, auth=ANYBODY) as running:
        preflight = await running.client.options(CHAT, headers=PREFLIGHT)
        answer = await running.client.post(CHAT, json=chat(), headers={"origin": PAGE})
        assert preflight.status_code == 204
        assert told(preflight) == told(answer) == {}


async def test_a_reload_puts_origins_in_force_under_a_running_stream(served):
    running, neuron = served
    go_on = trio.Event()
    end = (chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n")
    frames = (chunk("m", {"content": "Hel"}), go_on, chunk("m", {"content": "lo"}), *end)
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with running.stream(chat(stream=True), headers={"origin": PAGE}) as reading:
        await reading.until(b"Hel")
        running.files.settings(cors_origins=(OTHER,))
        plan = (await running.client.post("/fleet/reload")).json()["plan"]
        assert [change["needs_restart"] for change in plan["settings"]] == [False]
        models = {o: await running.client.get("/v1/models", headers={"origin": o}) for o in ORIGINS}
        assert told(models[PAGE]) == {"vary": "origin"}
        assert_readable(models[OTHER], OTHER)
        go_on.set()
        assert text_of(await reading.rest()) == "Hello"
