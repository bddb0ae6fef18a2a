"""top against a scripted gateway."""

import json
import time

import pytest

from cortex.cli.top import event_line

FLEET = {
    "nodes": [
        {
            "name": "beast",
            "healthy": True,
            "devices": [
                {
                    "index": 0,
                    "kind": "cuda",
                    "name": "RTX",
                    "vram_total_mb": 24576,
                    "vram_used_mb": 6144,
                    "utilization_pct": 87,
                    "temp_c": 61,
                },
            ],
            "models": [
                {
                    "id": "org/a",
                    "status": "loaded",
                    "devices": [0],
                    "vram_used_mb": 6000,
                    "in_flight": 3,
                    "queue_depth": 1,
                    "tok_s_decode": 41.25,
                },
                {
                    "id": "org/b",
                    "status": "loading",
                    "loading": {"stage": "weights", "progress": 0.25},
                },
            ],
        },
        {"name": "away", "healthy": False, "devices": [], "models": []},
    ],
    "waiting": {"org/a": 2, "org/cold": 5},
    "pins": [],
}


def lines_of(text):
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("words", [["--once"], []])  # there is no terminal here
def test_one_picture_is_printed(invoke, server, words):
    server.on("GET", "/fleet", FLEET)
    result = invoke("top", *words, "--url", server.url)
    assert result.exit_code == 0
    lines = lines_of(result.stdout)
    assert lines[0] == "1 of 2 nodes healthy, 3 requests in flight, 7 waiting, 41 tok/s"
    assert "beast RTX 87 % 6.0 GiB 24.0 GiB 61 °C" in lines
    assert "away – – – – –" in lines
    assert "org/a beast loaded 3 1 2 41.2 5.9 GiB in use" in lines
    assert "org/b beast loading weights 25% – – 0 – – –" in lines
    assert "5 waiting for org/cold" in lines


def test_as_json_it_is_what_the_gateway_said(invoke, server):
    server.on("GET", "/fleet", FLEET)
    assert json.loads(invoke("top", "--json", "--url", server.url).stdout) == FLEET


def test_who_may_not_see_the_fleet_is_told_so(invoke, server):
    server.on("GET", "/fleet", (403, {"error": {"message": "this machine only"}}))
    result = invoke("top", "--url", server.url)
    assert (result.exit_code, result.stderr) == (1, "cortex: this machine only\n")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"kind": "node_down", "node": "a", "error": "refused"}, "node_down on a error=refused"),
        (
            {"kind": "model_loading", "model": "m", "node": "a", "stage": "cache", "progress": 0.5},
            "model_loading m on a cache 50%",
        ),
        ({"kind": "pinned", "model": "m\x1b[2J"}, "pinned m?[2J"),
        ({"kind": "reloaded", "plan": {"nodes": {}}}, "reloaded"),
    ],
)
def test_an_event_is_a_line(event, line):
    assert event_line(event) == line
    at = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    assert event_line({**event, "at": at}) == f"03:04:05 {line}"


@pytest.mark.slow
def test_on_a_terminal_it_shows_what_changes_until_it_is_interrupted(terminal, server):
    event = b'id: x-1\nevent: pinned\ndata: {"kind": "pinned", "model": "org/a"}\n\n'
    server.on("GET", "/fleet/events", event)
    later = {**FLEET, "waiting": {"org/cold": 6}}
    server.on("GET", "/fleet", FLEET, FLEET, later)
    with terminal("top", "--interval", "0.2", "--url", server.url) as screen:
        screen.until("5 waiting for org/cold")
        screen.until("pinned org/a")
        screen.until("6 waiting for org/cold")
        screen.interrupt()
        assert screen.ended() == 0
