"""`cortex pull --node`: by way of the gateway, from a hub on loopback into a neuron's cache."""

import json

import huggingface_hub
import pytest
from fakes.demo_neuron import demo_neuron
from fakes.hub import served_hub
from fakes.served_gateway import served_gateway

from cortex.cli import node_pulls

SINGLE = "model.safetensors"
WEIGHTS = bytes(range(256)) * 12_000
FILES = {"config.json": b"{}", SINGLE: WEIGHTS}


@pytest.fixture
def hub():
    with served_hub(FILES) as served:
        yield served


@pytest.fixture
def fleet(hub, tmp_path):
    settings = {"offline": False, "hub_endpoint": hub.hub.hub, "hf_cache": tmp_path / "hub"}
    with (
        demo_neuron(tmp_path, **settings) as neuron,
        served_gateway(endpoints=(neuron.url,)) as gateway,
    ):
        yield gateway, neuron
    huggingface_hub.close_session()


def test_a_neuron_pulls_and_says_so(invoke, fleet, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(node_pulls, "LOOK_SECONDS", 0.02)
    gateway, neuron = fleet
    words = ("pull", "org/model", "--node", "node-0", "--url", gateway.url)
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("org/model on node-0: there, 2.9 MiB fetched in ")
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / hub.hub.commit
    assert (snapshot / SINGLE).read_bytes() == WEIGHTS
    (snapshot / SINGLE).write_bytes(b"x" * len(WEIGHTS))
    verified = invoke(*words, "--verify", "--json")
    last = json.loads(verified.stdout.splitlines()[-1])
    assert (last["node"], last["status"], last["repaired"]) == ("node-0", "pulled", [SINGLE])
    assert neuron.metric('neuron_pulls_total{result="pulled"}') == 2
    assert neuron.metric("neuron_pulled_bytes_total") == 2 * len(WEIGHTS) + 2
    failed = invoke("pull", "org/model", "--revision", "v9", "--node", "all", "--url", gateway.url)
    assert failed.exit_code == 1
    assert "org/model on node-0: org/model has no revision v9" in failed.stderr


def test_a_neurons_pull_is_stopped_and_gone_on_with(invoke, fleet, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(node_pulls, "LOOK_SECONDS", 0.02)
    gateway, neuron = fleet
    hub.hub.stall_after = 2_000_000
    order = {"model": "org/model"}
    assert gateway.post("/fleet/models/pull", order).status_code == 202
    words = ("pull", "org/model", "--node", "node-0", "--url", gateway.url)
    while (pull := gateway.client.get("/fleet/pulls").json()["pulls"][0])["stage"] != "download":
        assert pull["status"] in ("waiting", "pulling")
    stopped = invoke(*words, "--cancel")
    assert stopped.exit_code == 0, stopped.output
    assert stopped.stdout == "stopped on node-0; what came is kept\n"
    assert invoke(*words, "--cancel").exit_code == 1
    hub.hub.stall_after = None
    hub.soon(hub.hub.release.set)
    assert invoke(*words).exit_code == 0
    assert neuron.metric('neuron_pulls_total{result="cancelled"}') == 1


# Against a scripted gateway


def pull(status, **more):
    return {"node": "n", "id": "m", "source": "m", "status": status, **more}


@pytest.fixture
def ordered(invoke, server, monkeypatch):
    monkeypatch.setattr(node_pulls, "LOOK_SECONDS", 0.001)
    server.on("POST", node_pulls.ORDER, {"pulls": [pull("waiting")]})

    def ordered(*lists, words=()):
        server.on("GET", "/fleet/pulls", *lists)
        return invoke("pull", "m", "--node", "n", "--url", server.url, *words)

    return ordered


def test_one_that_ended_before_is_not_taken_for_this_one(ordered):
    result = ordered(
        {"pulls": [pull("failed", error="long ago"), pull("pulling", stage="download")]},
        {"pulls": [pull("failed", error="long ago"), pull("pulled", fetched=0, size=2048)]},
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "m on n: there already (2 KiB)\n"


def test_others_are_not_looked_at(ordered):
    result = ordered(
        {"pulls": [pull("failed", quant="q8"), {**pull("failed"), "node": "x"}, pull("pulled")]}
    )
    assert result.exit_code == 0, result.output


def test_a_failure_ends_with_1(ordered):
    result = ordered({"pulls": [pull("failed", error="no room")]})
    assert result.exit_code == 1
    assert result.stderr == "m on n: no room\n"


def test_a_pull_that_is_not_listed_any_more_is_lost(ordered):
    result = ordered({"pulls": []})
    assert result.exit_code == 1
    assert "not listed any more" in result.stderr


def test_a_gateway_that_fails_for_a_moment_is_asked_again(ordered):
    result = ordered((503, {"error": {"message": "a moment"}}), {"pulls": [pull("pulled")]})
    assert result.exit_code == 0, result.output


def test_a_gateway_that_keeps_failing_ends_it(ordered):
    result = ordered((503, {"error": {"message": "gone for good"}}))
    assert result.exit_code == 1
    assert "gone for good" in result.stderr


def test_what_is_asked_of_the_gateway(ordered, server):
    ordered({"pulls": [pull("pulled")]}, words=("--quant", "q8", "--revision", "v1", "--verify"))
    (asked,) = server.bodies(node_pulls.ORDER)
    assert asked == {"model": "m", "node": "n", "quant": "q8", "revision": "v1", "verify": True}


@pytest.mark.parametrize(
    "words",
    [
        ["--cancel"],
        ["--endpoint", "http://127.0.0.1:1"],
        ["--key", "k"],
        ["--node", "n", "--config", "x.toml"],
    ],
)
def test_options_that_do_not_go_together_end_with_2(invoke, words):
    result = invoke("pull", "org/model", *words)
    assert result.exit_code == 2
    assert "--node" in result.stderr


def test_an_endpoint_in_the_environment_is_no_order_for_a_neuron(invoke, tmp_path):
    env = {"CORTEX_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"}
    result = invoke("pull", "org/model", env={**env, "HF_HOME": str(tmp_path)})
    assert result.exit_code == 3
    assert "not in the cache" in result.stderr


def test_a_gateway_that_nobody_answers_ends_with_3(invoke, nobody):
    assert invoke("pull", "m", "--node", "n", "--url", nobody).exit_code == 3
