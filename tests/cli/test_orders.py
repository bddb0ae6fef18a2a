"""load, unload, pin, unpin against a scripted gateway."""

import json
import threading

import pytest


def test_load_waits_for_the_answer(invoke, server):
    server.on("POST", "/fleet/models/load", {"status": "loaded", "node": "beast"})
    result = invoke("load", "org/b", "--node", "beast", "--endpoint", server.url)
    assert result.exit_code == 0
    assert result.stdout == "org/b is loaded on beast\n"
    assert server.bodies("/fleet/models/load") == [{"model": "org/b", "node": "beast"}]


def test_load_as_json(invoke, server):
    server.on("POST", "/fleet/models/load", {"status": "loaded", "node": "beast"})
    result = invoke("load", "org/b", "--json", "--endpoint", server.url)
    assert json.loads(result.stdout) == {"status": "loaded", "node": "beast"}


@pytest.mark.slow
def test_a_load_that_outlasts_the_gateways_patience_is_joined_again(invoke, server):
    busy = {"error": {"message": "loading", "loading": {"node": "beast", "stage": "weights"}}}
    server.on(
        "POST", "/fleet/models/load", (503, busy), (503, busy), {"status": "loaded", "node": "b"}
    )
    result = invoke("load", "org/b", "--endpoint", server.url)
    assert result.exit_code == 0
    assert len(server.bodies("/fleet/models/load")) == 3


@pytest.mark.parametrize("command", ["load", "unload", "pin", "unpin"])
def test_a_refusal_is_told_in_the_gateways_words(invoke, server, command):
    error = {"error": {"message": "the model 'x' does not exist"}}
    server.on("POST", f"/fleet/models/{command}", (404, error))
    result = invoke(command, "x", "--endpoint", server.url)
    assert result.exit_code == 1
    assert result.stderr == "cortex: the model 'x' does not exist\n"


def test_unload_names_the_nodes(invoke, server):
    server.on("POST", "/fleet/models/unload", {"status": "unloaded", "nodes": ["a", "b"]})
    result = invoke("unload", "org/a", "--endpoint", server.url)
    assert result.stdout == "org/a is unloaded from a, b\n"
    assert server.bodies("/fleet/models/unload") == [{"model": "org/a"}]


def test_load_need_not_wait(invoke, server):
    server.on("POST", "/fleet/models/load", (202, {"status": "loading"}))
    result = invoke("load", "org/b", "--no-wait", "--url", server.url)
    assert result.exit_code == 0
    assert result.stdout == "org/b is being loaded; see: cortex ps\n"
    assert server.bodies("/fleet/models/load") == [{"model": "org/b", "wait": False}]


@pytest.mark.slow
def test_load_shows_how_far_it_is_on_a_terminal(terminal, server):
    loading = {"node": "beast", "stage": "weights", "progress": 0.42, "eta": 12.0}
    server.on("GET", "/v1/models/org/b", {"id": "org/b", "loading": loading})
    seen = threading.Event()

    def wait():
        assert seen.wait(30)
        return {"status": "loaded", "node": "beast"}

    server.on("POST", "/fleet/models/load", (200, wait))
    with terminal("load", "org/b", "--url", server.url) as screen:
        screen.until("org/b on beast: weights 42%, 12 s left")
        seen.set()
        screen.until("org/b is loaded on beast")
        assert screen.ended() == 0


def test_pin_and_unpin_say_where(invoke, server):
    server.on("POST", "/fleet/models/pin", {"status": "pinned", "model": "org/a", "node": None})
    result = invoke("pin", "alias", "--url", server.url)
    assert result.stdout == "org/a is pinned on every node\n"
    server.on("POST", "/fleet/models/pin", {"status": "pinned", "model": "org/a", "node": "n"})
    result = invoke("pin", "alias", "--node", "n", "--url", server.url)
    assert result.stdout == "org/a is pinned on n\n"
    answer = {"status": "unpinned", "model": "org/a", "nodes": ["n"]}
    server.on("POST", "/fleet/models/unpin", answer)
    assert invoke("unpin", "org/a", "--url", server.url).stdout == "org/a is unpinned\n"
    shown = json.loads(invoke("unpin", "org/a", "--json", "--url", server.url).stdout)
    assert shown == answer
    assert server.bodies("/fleet/models/pin") == [
        {"model": "alias"},
        {"model": "alias", "node": "n"},
    ]
