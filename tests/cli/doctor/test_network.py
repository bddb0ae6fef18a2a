"""Neurons, hub and tokens, asked over real HTTP; what they answer is scripted."""

from __future__ import annotations

import pytest

from cortex import __version__
from cortex.cli import live
from cortex.cli.doctor import network, tokens
from cortex.cli.doctor.peer import Heard, ask, is_url
from cortex.cli.doctor.peer import _skew as skew_of
from cortex.cli.doctor.report import FAILED, OK, WARNING, Judge, show
from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import NeuronNode
from cortex.config.neuron import DefaultModel, NeuronConfig

JUDGE = Judge("gateway")
DEVICE = {"index": 0, "name": "GPU", "kind": "cuda", "vram_total_mb": 1000}


def neuron_on(server, *, status="ok", models=()):
    server.on("GET", "/health", {"uptime_secs": 1.0, "status": status})
    server.on("GET", "/discovery", {"hostname": "h", "os": "o", "kernel": "k", "devices": [DEVICE]})
    server.on("GET", "/version", {"version": __version__})
    server.on("GET", "/models", (200, list(models)))
    return NeuronNode("gpu1", server.url, token="s3cret")


def one(node):
    (seen,) = live.look([node])
    return seen


def test_a_neuron_that_answers_is_ok_and_gets_its_token(server):
    seen = one(neuron_on(server, models=[{"id": "m", "status": "loaded"}]))
    finding = network.neuron(JUDGE, seen)
    assert (finding.state, "1 models loaded" in finding.detail) == (OK, True)
    assert seen.version == __version__
    assert {headers["authorization"] for headers in server.headers} == {"Bearer s3cret"}


def test_its_clock_is_known(server):
    heard = one(neuron_on(server)).heard
    assert heard.skew is not None
    assert abs(heard.skew) <= heard.doubt + 1


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((401, {"error": {"message": "no"}}), "refuses the token"),
        ((500, {"error": {"message": "boom"}}), "boom"),
        ((200, {"hello": "world"}), "is no neuron"),
    ],
)
def test_what_is_wrong_with_a_neuron_is_said(server, answer, word):
    node = neuron_on(server)
    server.on("GET", "/health", answer)
    finding = network.neuron(JUDGE, one(node))
    assert (finding.state, word in finding.detail) == (FAILED, True)
    assert finding.advice
    assert "s3cret" not in finding.detail


def test_a_neuron_that_is_not_there_or_ails(nobody, server):
    finding = network.neuron(JUDGE, one(NeuronNode("gpu1", nobody)))
    assert (finding.state, "not reached" in finding.detail) == (FAILED, True)
    finding = network.neuron(JUDGE, one(neuron_on(server, status="recovering")))
    assert (finding.state, "recovering" in finding.detail) == (WARNING, True)


def test_versions_that_differ_are_a_warning():
    assert network.version(JUDGE, "gpu1", __version__).state == OK
    assert network.version(JUDGE, "gpu1", "0.0").state == WARNING
    assert network.version(JUDGE, "gpu1", None).state == WARNING


def test_models_are_feasible_somewhere_or_not(server, nobody):
    entries = (
        CatalogueEntry("fits", vram_mb=500),
        CatalogueEntry("huge", vram_mb=5000),
        CatalogueEntry("pinned", pinned_on=("gpu9",)),
        CatalogueEntry("away", pinned_on=("gone",)),
    )
    seen = live.look([neuron_on(server), NeuronNode("gone", nobody)])
    states = [each.state for each in network.feasible(JUDGE, Catalogue(entries), seen)]
    assert states == [OK, WARNING, FAILED, WARNING]
    nothing = list(network.feasible(JUDGE, Catalogue(entries[:1]), ()))
    assert (nothing[0].state, "no neurons" in nothing[0].detail) == (FAILED, True)


def test_what_a_server_of_another_make_lists_is_somewhere(server, nobody):
    entries = (CatalogueEntry("theirs"), CatalogueEntry("not-theirs"))
    server.on("GET", "/v1/models", {"data": [{"id": "theirs", "object": "model"}]})
    node = NeuronNode("vllm", server.url, kind="openai", token="s3cret")

    def states(node):
        return [each.state for each in network.feasible(JUDGE, Catalogue(entries), (one(node),))]

    assert network.neuron(JUDGE, one(node)).state == OK
    assert states(node) == [OK, FAILED]
    assert states(NeuronNode("vllm", nobody, kind="openai")) == [WARNING, WARNING]
    server.on("GET", "/v1/models", (200, {"data": 5}))
    assert network.neuron(JUDGE, one(node)).state == FAILED
    server.on("GET", "/v1/models", (404, {}))
    assert network.neuron(JUDGE, one(node)).state == FAILED
    mapped = NeuronNode("vllm", server.url, kind="openai", models={"theirs": "a/b"})
    assert states(mapped) == [OK, FAILED]


WHO = "/api/whoami-v2"


def hub(server, environ=None, **config):
    return network.hub(JUDGE, NeuronConfig(hub_endpoint=server.url, **config), environ or {})


def test_a_hub_is_reached_and_knows_the_token(server):
    server.on("GET", WHO, (401, {}))
    assert hub(server).state == OK
    assert hub(server, {"HF_TOKEN": "hf_x"}).state == FAILED
    server.on("GET", WHO, {"name": "me"})
    assert "knows HF_TOKEN" in hub(server, {"HF_TOKEN": "hf_x"}).detail
    assert server.headers[-1]["authorization"] == "Bearer hf_x"


def test_a_hub_that_is_away_matters_where_models_come_from_it(nobody):
    def away(*models):
        config = NeuronConfig(hub_endpoint=nobody, default_models=models)
        return network.hub(JUDGE, config, {}).state

    assert away() == WARNING
    assert away(DefaultModel("cortex/demo"), DefaultModel("m", source="/models/m")) == WARNING
    assert away(DefaultModel("org/model")) == FAILED


def test_offline_asks_nobody(server):
    assert "offline" in hub(server, offline=True).detail
    assert "offline" in hub(server, {"HF_HUB_OFFLINE": "1"}).detail
    assert not server.asked


def listed(model_id, node="gpu1", status="loaded", **more):
    places = [{"node": node, "status": status}]
    return {"id": model_id, "loaded": status == "loaded", "locations": places, **more}


def through(server):
    return list(tokens.through_gateway(JUDGE, server.url, "key", ["foreign"], verify=True))


def test_each_loaded_model_is_asked_for_one_token(server):
    models = [
        listed("m"),
        listed("e", capabilities=["text", "embeddings"]),
        listed("other", status="unloaded"),
        listed("claude", alias_of="m"),
        listed("theirs", node="foreign"),
    ]
    server.on("GET", "/v1/models", {"data": models})
    server.on("POST", "/v1/completions", {"choices": [{"text": "x"}]})
    server.on("POST", "/v1/embeddings", {"data": [{"embedding": [1.0]}]})
    found = through(server)
    assert [(each.check, each.state) for each in found] == [("token m", OK), ("token e", OK)]
    assert [body["max_tokens"] for body in server.bodies("/v1/completions")] == [1]
    assert server.headers[-1]["authorization"] == "Bearer key"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((503, {"error": {"message": "it can serve nothing"}}), FAILED),
        ((200, {"choices": []}), FAILED),
        ((200, b"no json"), FAILED),
        ((403, {"error": {"message": "no"}}), WARNING),
    ],
)
def test_a_model_that_gives_no_token_is_named(server, answer, state):
    server.on("GET", "/v1/models", {"data": [listed("m")]})
    server.on("POST", "/v1/completions", answer)
    (finding,) = through(server)
    assert (finding.check, finding.state) == ("token m", state)
    assert finding.advice


def test_without_a_key_or_a_model_no_token_is_tried(server):
    server.on("GET", "/v1/models", (401, {}))
    assert [each.state for each in through(server)] == [WARNING]
    server.on("GET", "/v1/models", {"data": []})
    assert [each.state for each in through(server)] == [WARNING]


def test_a_neurons_failed_models_are_named(server):
    models = [{"id": "m", "status": "loaded"}, {"id": "f", "status": "failed", "error": "no room"}]
    server.on("GET", "/models", (200, models))
    server.on("POST", "/v1/completions", {"choices": [{"text": "x"}]})
    found = list(tokens.at_neuron(JUDGE, server.url, "t"))
    assert [(each.check, each.state) for each in found] == [("model f", FAILED), ("token m", OK)]


def test_who_holds_a_port_is_recognised():
    version, health = Heard(200, {"version": "1.0"}), Heard(200, {})
    assert "cortex gateway 1.0" in (network.recognised("gateway", version, health) or "")
    assert network.recognised("gateway", Heard(200, "<html>"), health) is None
    assert network.recognised("gateway", version, Heard(404)) is None
    assert "refuses" in (network.recognised("neuron", Heard(401), Heard(401)) or "")
    assert network.recognised("gateway", Heard(401), Heard(401)) is None


def test_asking_never_raises(server, nobody):
    for url in (nobody, "http://[::1", "http://127.0.0.1:1/\x00", "nonsense"):
        assert not ask(url).good
    assert is_url("https://host/base")
    assert not is_url("host:1")


def test_no_answer_makes_asking_raise(server):
    server.on("GET", "/x", b"[" * 200_000)
    assert isinstance(ask(f"{server.url}/x").body, str)
    assert skew_of(f"Mon, 01 Jan 2024 00:00:00 +{'9' * 30}", 0.0) is None


def test_a_finding_moves_no_cursor(capsys):
    show(JUDGE.failed("ready", "/readyz: \x1b[2J\nok", "see \x1b]0;x\x07"))
    assert capsys.readouterr().out.splitlines() == [
        "failed   gateway  ready: /readyz: ?[2J?ok",
        "                  -> see ?]0;x?",
    ]
