"""The management routes, and what guards all of them."""

from __future__ import annotations

import hmac
import threading
from typing import Any

import httpx
import pytest
import trio
from fakes.demo_neuron import DEMO, DemoNeuron
from fakes.engine import FakeEngine
from fakes.served_neuron import MODEL, served, until

from cortex.errors import Forbidden, Overloaded, Unauthorized
from cortex.neuron import api as api_module
from cortex.neuron.api import guard_of, render_error
from cortex.service.http import Answer, HttpRequest, Route
from cortex.wire import json

ROUTES = [
    ("GET", "/discovery"),
    ("GET", "/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/models"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("POST", "/models/estimate"),
    ("GET", f"/models/{DEMO}/endpoint"),
    ("GET", f"/models/{DEMO}/capabilities"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
]


def refused(response: httpx.Response, status: int, code: str | None = None) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert code is None or error["code"] == code
    return error


# The token


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("POST", "/restart")])
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret-token", "s3cret-token", "Bearer é"]
)
def test_no_route_answers_without_the_token(
    small: DemoNeuron, method: str, path: str, given: str | None
) -> None:
    headers: dict[bytes, bytes] = {}
    if given is not None:
        headers = {b"authorization": given.encode("latin-1")}
    with httpx.Client(base_url=small.url) as client:
        response = client.request(method, path, headers=headers)
    refused(response, 401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_the_token_every_route_is_reached(small: DemoNeuron, method: str, path: str) -> None:
    status = small.client.request(method, path, content=b"{}").status_code
    assert status == (200 if method == "GET" else 400)


async def _nothing(request: HttpRequest) -> Answer:
    return Answer(b"")


ROUTE = Route("GET", "/", _nothing)


def ask(authorization: str | None) -> HttpRequest:
    headers = {} if authorization is None else {"authorization": authorization}
    return HttpRequest("GET", "/", headers, b"", {}, "r")


async def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(api_module, "hmac", Watched)
    guard = guard_of("right")
    for given in (None, "Bearer wrong", "Basic right"):
        with pytest.raises(Unauthorized):
            guard(ask(given), ROUTE)
    guard(ask("bearer right"), ROUTE)
    assert [expected for _, expected in compared] == [b"right"] * 4


def test_without_a_token_programs_are_served_and_web_pages_from_elsewhere_are_not() -> None:
    guard = guard_of(None)

    def order(headers: dict[str, str]) -> HttpRequest:
        return HttpRequest("POST", "/models/load", headers, b"", {}, "r", None, received_at=0.0)

    for headers in ({}, {"origin": "http://localhost:8080"}):
        guard(order(headers), ROUTE)
    with pytest.raises(Forbidden):
        guard(order({"origin": "https://example.com", "content-type": "text/plain"}), ROUTE)


def test_a_neuron_alone_says_503_where_a_gateway_says_429() -> None:
    answer = render_error(Overloaded("full", retry_after=2.5), "r")
    assert answer.status == 503
    assert answer.headers["retry-after"] == "3"


# What it tells


def test_the_original_paths_and_keys(demo: DemoNeuron) -> None:
    get = demo.client.get
    discovery = get("/discovery").json()
    assert {"hostname", "os", "kernel", "devices", "harnesses"} <= set(discovery)
    assert "Qwen3ForCausalLM" in discovery["architectures"]
    said = get("/version").json()
    assert said["version"] == discovery["version"]
    assert said["flavour"] == "checkout"
    (model,) = (each for each in get("/models").json() if each["id"] == DEMO)
    assert (model["id"], model["status"], model["devices"]) == (DEMO, "loaded", [0])
    assert model["vram_used_mb"] > 0
    assert model["limit"] == {"context": 65_536}
    assert model["tool_call"]
    assert model["reasoning"]
    assert model["servable"] == {"ok": True}
    assert get(f"/models/{DEMO}/endpoint").json() == {"url": demo.url}
    assert get(f"/models/{DEMO}/capabilities").json() == {
        "capabilities": ["text", "chat", "tools", "reasoning"]
    }


def test_health_is_truthful_and_leaves_out_what_is_not_known(demo: DemoNeuron) -> None:
    health = demo.client.get("/health").json()
    assert health["status"] == "ok"
    assert health["uptime_secs"] > 0
    assert health["activation"]["state"] == "ready"
    assert health["activation"]["completed"] == [DEMO]
    (load,) = health["models"]
    assert load["id"] == DEMO
    assert load["max_queue_depth"] == 64
    assert None not in load.values()
    assert None not in health["devices"][0].values()


def test_every_family_is_scraped(demo: DemoNeuron) -> None:
    demo.chat(max_tokens=2)
    response = demo.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for name in (
        "neuron_build_info",
        "neuron_time_to_first_token_seconds",
        "neuron_inter_token_seconds",
        "neuron_request_duration_seconds",
        "neuron_request_queue_seconds",
        "neuron_prompt_tokens_total",
        "neuron_generation_tokens_total",
        "neuron_requests_total",
        "neuron_requests_running",
        "neuron_requests_waiting",
        "neuron_kv_cache_usage_ratio",
        "neuron_prefix_cache_queries_total",
        "neuron_preemptions_total",
        "neuron_requests_rejected_total",
        "neuron_model_status",
        "neuron_device_up",
        "neuron_device_memory_bytes",
    ):
        assert f"# TYPE {name} " in response.text, name


@pytest.mark.parametrize("tail", ["endpoint", "capabilities"])
def test_what_is_not_here_has_no_endpoint(demo: DemoNeuron, tail: str) -> None:
    refused(demo.client.get(f"/models/no/such/{tail}"), 404, "model_not_found")


def test_an_unknown_path_is_told_in_the_envelope(demo: DemoNeuron) -> None:
    refused(demo.client.get("/no/such"), 404, "not_found")
    response = demo.client.get("/models/load")
    refused(response, 405)
    assert response.headers["allow"] == "POST"


# Loading


def test_an_estimate_reads_headers_and_loads_nothing(demo: DemoNeuron) -> None:
    body = {"model_id": "my/demo", "source": "demo"}
    estimate = demo.client.post("/models/estimate", json=body).json()
    assert estimate["model_id"] == "my/demo"
    assert estimate["architecture"] == "Qwen3ForCausalLM"
    assert estimate["total_bytes"] == sum(estimate["rows"].values()) > 0
    assert estimate["context"] == estimate["trained_context"] == 65_536
    assert estimate["tool_call"]
    assert estimate["reasoning"]
    assert "my/demo" not in {model["id"] for model in demo.client.get("/models").json()}


@pytest.mark.parametrize("path", ["/models/load", "/models/estimate"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"model_id": 5}, 400),
        ({"model_id": "../etc"}, 400),
        ({"model_id": "a", "devices": [0, 0]}, 400),
        ({"model_id": "a", "dtype": "int3"}, 400),
        ([], 400),
        ({"model_id": "a/b", "source": "/no/such/folder"}, None),
        ({"model_id": "a/b"}, 503),  # offline, and not in the cache
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_told_in_the_envelope(
    demo: DemoNeuron, path: str, body: Any, status: int | None
) -> None:
    response = demo.client.post(path, json=body)
    error = refused(response, status or response.status_code)
    assert 400 <= response.status_code < 600
    assert "Traceback" not in error["message"]


async def test_a_load_answers_when_it_is_done_and_again_at_once() -> None:
    async with served() as neuron:
        for _ in range(2):
            answer = await neuron.client.post("/models/load", json={"model_id": "org/b"})
            assert answer.status_code == 200
            assert answer.json()["status"] == "loaded"
            assert answer.json()["model"]["id"] == "org/b"
        conflict = {"model_id": "org/b", "source": "elsewhere"}
        refused(await neuron.client.post("/models/load", json=conflict), 409, "conflict")


async def test_a_load_that_is_not_waited_for_is_seen_to_go_on() -> None:
    gate = threading.Event()
    async with served() as neuron:
        neuron.checkpoints.gate = gate
        path = "/models/load?wait=false"
        for _ in range(2):
            answer = await neuron.client.post(path, json={"model_id": "org/b"})
            assert answer.status_code == 202
            assert answer.json()["status"] == "loading"
        chat = {"model": "org/b", "messages": [{"role": "user", "content": "a"}]}
        error = refused(await neuron.client.post("/v1/chat/completions", json=chat), 503)
        assert error["loading"]["stage"]
        models = {m["id"]: m for m in (await neuron.client.get("/models")).json()}
        assert models["org/b"]["progress"]["stage"]
        assert not models["org/b"]["servable"]["ok"]
        gate.set()
        await until(lambda: all(m.status == "loaded" for m in neuron.lifecycle.models()))
        answer = await neuron.client.post(path, json={"model_id": "org/b"})
        assert answer.status_code == 200
        assert answer.json()["status"] == "loaded"


async def test_concurrent_loads_are_one() -> None:
    async with served() as neuron, trio.open_nursery() as nursery:
        statuses: list[int] = []

        async def load() -> None:
            answer = await neuron.client.post("/models/load", json={"model_id": "org/b"})
            statuses.append(answer.status_code)

        for _ in range(5):
            nursery.start_soon(load)
        await until(lambda: len(statuses) == 5)
        assert statuses == [200] * 5
        assert neuron.checkpoints.opens.count("org--b") == 1


async def test_a_failed_load_is_told_with_its_cause() -> None:
    async with served() as neuron:
        neuron.checkpoints.open_errors["org--b"] = RuntimeError("bad shard")
        answer = await neuron.client.post("/models/load", json={"model_id": "org/b"})
        error = refused(answer, 503, "load_failed")
        assert "bad shard" in error["message"]


async def test_an_unload_waits_for_what_runs_and_then_it_is_gone() -> None:
    def held() -> FakeEngine:
        return FakeEngine(gate=threading.Event())

    async with served(held) as neuron, trio.open_nursery() as nursery:
        statuses: dict[str, int] = {}

        async def post(name: str, path: str, body: Any) -> None:
            statuses[name] = (await neuron.client.post(path, json=body)).status_code

        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        nursery.start_soon(post, "chat", "/v1/chat/completions", chat)
        await until(lambda: bool(neuron.engine.running))
        nursery.start_soon(post, "unload", "/models/unload", {"model_id": MODEL})
        await until(lambda: neuron.lifecycle.models()[0].status == "unloading")
        late = await neuron.client.post("/v1/chat/completions", json=chat)
        refused(late, 503)
        assert statuses == {}
        assert neuron.engine.gate is not None
        neuron.engine.gate.set()
        await until(lambda: len(statuses) == 2)
        assert statuses == {"chat": 200, "unload": 200}
        assert (await neuron.client.get("/models")).json() == []
        refused(await neuron.client.post("/v1/chat/completions", json=chat), 404)
        gone = await neuron.client.post("/models/unload", json={"model_id": MODEL})
        refused(gone, 404, "model_not_found")


async def test_an_idle_neuron_restarts_by_order_and_a_busy_one_refuses() -> None:
    def held() -> FakeEngine:
        return FakeEngine(gate=threading.Event())

    async with served(held) as neuron, trio.open_nursery() as nursery:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}

        async def ask() -> None:
            assert (await neuron.client.post("/v1/chat/completions", json=chat)).status_code == 200

        nursery.start_soon(ask)
        await until(lambda: bool(neuron.engine.running))
        refused(await neuron.client.post("/restart", json={}), 409, "conflict")
        assert neuron.renewals == []
        assert neuron.engine.gate is not None
        neuron.engine.gate.set()
        await until(lambda: not neuron.engine.running)
        await until(lambda: not any(load.in_flight for load in neuron.lifecycle.loads()))
        answer = await neuron.client.post("/restart", json={})
        assert (answer.status_code, answer.json()) == (202, {"status": "restarting"})
        assert neuron.renewals == ["renewed"]
        assert (await neuron.client.get("/health")).json()["status"] == "recovering"
        refused(await neuron.client.post("/v1/chat/completions", json=chat), 503)


@pytest.mark.parametrize("body", [{}, {"model_id": 4}, []], ids=str)
def test_an_unload_must_name_a_model(demo: DemoNeuron, body: Any) -> None:
    refused(demo.client.post("/models/unload", json=body), 400)


def test_what_is_told_is_json_without_nulls(demo: DemoNeuron) -> None:
    for path in ("/discovery", "/health", "/models", "/version"):
        assert b"null" not in json.dumps(demo.client.get(path).json()), path
