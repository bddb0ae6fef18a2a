"""status and ps against a scripted gateway."""

import json

import pytest

HEALTH = {"status": "ok", "nodes": {"healthy": 1, "total": 1}}
NODE = {
    "name": "beast",
    "endpoint": "http://beast:13131",
    "healthy": True,
    "version": "0.1.0",
    "devices": [
        {"index": 0, "kind": "cuda", "name": "RTX", "vram_total_mb": 24576, "vram_used_mb": 6144},
        {"index": 1, "kind": "cuda", "name": "RTX", "vram_total_mb": 24576, "vram_used_mb": 6144},
    ],
    "models": [
        {
            "id": "org/a",
            "status": "loaded",
            "devices": [0, 1],
            "vram_used_mb": 6000,
            "in_flight": 3,
            "context": 40960,
        },
        {
            "id": "org/b",
            "status": "loading",
            "devices": [0],
            "loading": {"stage": "weights", "progress": 0.25, "eta": 12.0},
        },
        {"id": "org/c", "status": "unloaded"},
    ],
}
MODELS = {
    "data": [
        {
            "id": "org/a",
            "loaded": True,
            "status": "loaded",
            "limit": {"context": 40960},
            "locations": [{"node": "beast", "status": "loaded", "vram_estimate_mb": 512}],
        },
        {"id": "org/z", "loaded": False, "status": "unloaded", "locations": []},
    ]
}


@pytest.fixture
def fleet(server):
    server.on("GET", "/health", HEALTH)
    server.on("GET", "/v1/models", MODELS)
    server.on("GET", "/fleet", {"nodes": [NODE]})
    return server


def test_status_shows_health_nodes_and_models(invoke, fleet):
    result = invoke("status", "--endpoint", fleet.url)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "fleet: ok, 1 of 1 nodes healthy" in lines
    assert "beast healthy 0.1.0 RTX, RTX 12.0 GiB 48.0 GiB http://beast:13131" in lines
    assert "org/a loaded beast 40960 512 MiB" in lines
    assert "org/z unloaded – – –" in lines


def test_status_of_a_degraded_fleet_ends_with_1(invoke, fleet):
    fleet.on("GET", "/health", {"status": "degraded", "nodes": {"healthy": 0, "total": 1}})
    result = invoke("status", "--endpoint", fleet.url)
    assert result.exit_code == 1
    assert "degraded, 0 of 1" in result.stdout


def test_status_tells_why_a_node_is_away_and_a_model_failed(invoke, fleet):
    away = {"name": "gpu1", "healthy": False, "error": "it refused the token [401]\x1b[2J"}
    failed = {"id": "org/d", "status": "failed", "error": "no room"}
    fleet.on("GET", "/fleet", {"nodes": [{**NODE, "error": None, "models": [failed]}, away]})
    lines = invoke("status", "--endpoint", fleet.url).stdout.splitlines()
    assert "gpu1: it refused the token [401]?[2J" in lines  # no markup, no terminal sequence
    assert "org/d on beast: no room" in lines


def test_status_as_json_is_what_the_gateway_said(invoke, fleet):
    result = invoke("status", "--json", "--endpoint", fleet.url)
    said = json.loads(result.stdout)
    assert said == {"health": HEALTH, "nodes": [NODE], "models": MODELS["data"]}


def test_status_without_the_right_to_see_nodes_shows_the_rest(invoke, fleet):
    fleet.on("GET", "/fleet", (403, {"error": {"message": "this machine only"}}))
    result = invoke("status", "--endpoint", fleet.url)
    assert result.exit_code == 0
    assert "org/a" in result.stdout
    assert "beast:13131" not in result.stdout


def test_the_endpoint_may_come_from_the_environment(invoke, fleet):
    result = invoke("status", env={"CORTEX_ENDPOINT": fleet.url, "CORTEX_API_KEY": "k-1"})
    assert result.exit_code == 0
    assert fleet.headers[0]["authorization"] == "Bearer k-1"


def test_a_key_on_the_command_line_comes_before_the_environments(invoke, fleet):
    words = ("status", "--url", fleet.url, "--key", "k-2")
    assert invoke(*words, env={"CORTEX_API_KEY": "k-1"}).exit_code == 0
    assert fleet.headers[0]["authorization"] == "Bearer k-2"


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"status": "ok"}, "healthy"),
        ({"status": "draining"}, "draining"),
        ({"circuit": "open"}, "circuit open"),
        ({"circuit": "closed"}, "healthy"),
        ({"healthy": False, "status": "unreachable"}, "unreachable"),
    ],
)
def test_status_tells_what_is_wrong_with_a_node(invoke, fleet, fields, state):
    fleet.on("GET", "/fleet", {"nodes": [{**NODE, **fields}]})
    result = invoke("status", "--url", fleet.url)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(line.startswith(f"beast {state} ") for line in lines)


def test_what_a_server_says_moves_no_cursor(invoke, fleet):
    evil = {"id": "\x1b[2J[red]x", "loaded": True}
    fleet.on("GET", "/v1/models", {"data": [evil]})
    result = invoke("status", "--endpoint", fleet.url)
    assert "\x1b[2J" not in result.stdout
    assert "?[2J[red]x" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["ps"],
        ["top"],
        ["load", "m"],
        ["unload", "m"],
        ["pin", "m"],
        ["unpin", "m"],
        ["reload"],
        ["chat", "x"],
    ],
)
def test_an_endpoint_that_nobody_answers_ends_with_3(invoke, nobody, words):
    result = invoke(*words, "--endpoint", nobody)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"cortex: cannot reach {nobody}")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "ftp://x", ""])
def test_an_endpoint_that_is_no_url_ends_with_2(invoke, endpoint):
    assert invoke("status", "--endpoint", endpoint).exit_code == 2


def test_something_else_at_the_endpoint_is_said_to_be_no_gateway(invoke, server):
    server.on("GET", "/health", (200, b"<html>"))
    result = invoke("status", "--endpoint", server.url)
    assert result.exit_code == 1
    assert "is no cortex gateway" in result.stderr


def test_ps_lists_what_is_loaded_or_loading(invoke, fleet):
    result = invoke("ps", "--url", fleet.url)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "MODEL NODE STATE SIZE PROCESSOR CONTEXT IN FLIGHT UNTIL"
    assert "org/a beast loaded 5.9 GiB cuda 0,1 40960 3 in use" in lines
    assert "org/b beast loading weights 25%, 12 s left – cuda 0 – – –" in lines
    assert "org/c" not in result.stdout


@pytest.mark.parametrize(
    ("fields", "until"),
    [
        ({"expires_in": 1740.2}, "in 30 min"),
        ({"expires_in": 12.0}, "in 12 s"),
        ({"expires_in": 90_000}, "in 25 h"),
        ({}, "stays"),
        ({"pinned": True, "in_flight": 1}, "pinned"),
        ({"in_flight": 1, "expires_in": 9.0}, "in use"),
        ({"status": "unreachable"}, "–"),
    ],
)
def test_ps_says_how_long_a_model_stays(invoke, server, fields, until):
    model = {"id": "m", "status": "loaded", "devices": [0]} | fields
    node = {"name": "n", "models": [model], "devices": [{"index": 0, "kind": "cpu"}]}
    server.on("GET", "/fleet", {"nodes": [node]})
    line = invoke("ps", "--url", server.url).stdout.splitlines()[1]
    assert " cpu " in line
    assert line.rstrip().endswith(until)


def test_ps_as_json(invoke, fleet):
    models = json.loads(invoke("ps", "--json", "--endpoint", fleet.url).stdout)["models"]
    assert [(m["node"], m["id"]) for m in models] == [("beast", "org/a"), ("beast", "org/b")]


def test_ps_of_an_idle_fleet_says_so(invoke, server):
    server.on("GET", "/fleet", {"nodes": []})
    assert invoke("ps", "--endpoint", server.url).stdout == "no model is loaded\n"
