"""up: ports, what the children are told, readiness, what is printed."""

import itertools
import shlex

import pytest

from cortex.cli.exits import Misconfigured
from cortex.cli.readiness import Endpoints, NotReady, until_ready
from cortex.cli.up import Addresses, children, free_port, own_token, welcome
from cortex.config.gateway import NeuronNode
from cortex.config.loader import load_gateway, load_neuron
from cortex.service.serve import listen

ADDRESSES = Addresses("127.0.0.1", 31313, 13131, 31314)


def flag(command, name):
    return command[command.index(name) + 1]


@pytest.mark.parametrize("option", ["--port", "--neuron-port", "--metrics-port"])
def test_a_taken_port_ends_with_2_and_is_named(invoke, option):
    with listen("127.0.0.1:0") as taken:
        port = taken.getsockname()[1]
        others = {"--port", "--neuron-port", "--metrics-port"} - {option}
        words = itertools.chain([option, port], *([other, 0] for other in sorted(others)))
        result = invoke("up", *words)
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}: Address already in use ({option} moves it)" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_host_that_is_not_here_ends_with_2(invoke):
    result = invoke("up", "--host", "192.0.2.1", "--port", "0")
    assert result.exit_code == 2
    assert "192.0.2.1:0" in result.stderr


def test_two_parts_on_one_port_end_with_2(invoke):
    with listen("127.0.0.1:0") as probe:
        port = probe.getsockname()[1]
    result = invoke("up", "--port", port, "--neuron-port", port, "--metrics-port", 0)
    assert result.exit_code == 2
    assert "must differ" in result.stderr


def test_port_0_picks_a_free_one():
    assert 0 < free_port("127.0.0.1", 0, "--port") < 65536


def test_a_model_that_can_be_none_ends_with_2(invoke):
    assert invoke("up", "--model", "a b").exit_code == 2


def test_the_children_find_each_other_and_share_the_token():
    gateway, neuron = children(ADDRESSES, ("cortex/demo", "org/b"), "tok", "info")
    assert (gateway.name, neuron.name) == ("gateway", "neuron")
    assert "tok" not in (*gateway.command, *neuron.command)
    assert "tok" not in repr(gateway)
    config = load_gateway(None, gateway.environ)
    assert config.neurons == (NeuronNode("local", "http://127.0.0.1:13131", token="tok"),)
    assert load_neuron(None, neuron.environ).token == "tok"
    assert flag(gateway.command, "--listen") == "127.0.0.1:31313"
    assert flag(gateway.command, "--metrics-listen") == "127.0.0.1:31314"
    assert flag(neuron.command, "--listen") == "127.0.0.1:13131"
    assert list(neuron.command)[-4:] == ["--model", "cortex/demo", "--model", "org/b"]


def test_the_children_drain_as_long_as_they_are_configured_to(monkeypatch):
    monkeypatch.setenv("CORTEX_GATEWAY__DRAIN_SECONDS", "5m")
    monkeypatch.setenv("NEURON_DRAIN_SECONDS", "7")
    gateway, neuron = children(ADDRESSES, ("cortex/demo",), "tok", "info")
    assert (gateway.drain_seconds, neuron.drain_seconds) == (300, 7)


def test_the_token_is_that_of_the_environment_or_one_of_its_own():
    assert own_token({"NEURON_TOKEN": "told"}) == "told"
    tokens = {own_token({}), own_token({}), own_token({"NEURON_TOKEN": ""})}
    assert len(tokens) == 3
    assert min(map(len, tokens)) >= 32


def test_a_token_file_of_the_environment_gives_way(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("other")
    monkeypatch.setenv("NEURON_TOKEN_FILE", str(tmp_path / "token"))
    _, neuron = children(ADDRESSES, ("cortex/demo",), "tok", "info")
    assert load_neuron(None, neuron.environ).token == "tok"


def test_a_wrong_environment_ends_it_before_anything_starts(monkeypatch):
    monkeypatch.setenv("CORTEX_GATEWAY__QUEUE_DEPTH", "x")
    with pytest.raises(Misconfigured, match="CORTEX_GATEWAY__QUEUE_DEPTH"):
        children(ADDRESSES, ("cortex/demo",), "tok", "info")


def test_the_lines_to_paste_hold_addresses_and_model():
    text = welcome(Addresses("0.0.0.0", 8080, 13131, 31314), ("cortex/demo",))
    assert "http://127.0.0.1:8080/v1" in text
    assert "cortex chat --endpoint http://127.0.0.1:8080" in text
    pasted = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    for words in pasted:
        if words[0] == "python3":
            compile(words[2], "pasted", "exec")
    (claude,) = [words for words in pasted if words[-1] == "claude"]
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:8080" in claude
    assert "ANTHROPIC_MODEL=cortex/demo" in claude


@pytest.mark.parametrize(
    ("variable", "argument", "expected"),
    [
        ("python3 cortex.py", "/x/cortex/__main__.py", "  python3 cortex.py chat\n"),
        (None, "./cortex.pyz", "  ./cortex.pyz chat\n"),
        (None, "/usr/bin/cortex", "  cortex chat\n"),
    ],
)
def test_the_command_to_paste_is_the_one_we_were_started_with(
    monkeypatch, variable, argument, expected
):
    monkeypatch.delenv("CORTEX_COMMAND", raising=False)
    if variable is not None:
        monkeypatch.setenv("CORTEX_COMMAND", variable)
    monkeypatch.setattr("sys.argv", [argument])
    text = welcome(Addresses("127.0.0.1", 31313, 13131, 31314), ("cortex/demo",))
    assert expected in text


def test_a_gateway_with_a_certificate_is_told_as_https():
    text = welcome(Addresses("0.0.0.0", 8080, 13131, 31314, secure=True), ("cortex/demo",))
    assert "OpenAI      https://127.0.0.1:8080/v1" in text
    assert "metrics     http://127.0.0.1:31314/metrics" in text


async def start_nothing():
    """The scripted gateway runs already."""


def activation(**members):
    return {"status": "ok", "activation": {"state": "pre_warming", **members}}


def listed(*ids):
    return {"data": [{"id": model, "loaded": True} for model in ids]}


async def test_a_gateway_that_wants_a_key_is_asked_for_its_health(servers):
    neuron, gateway = servers(), servers()
    neuron.on("GET", "/health", {"status": "ok"})
    neuron.on("GET", "/models", {"models": [{"id": "a", "status": "loaded"}]})
    gateway.on("GET", "/health", {"nodes": {"healthy": 1}})
    gateway.on("GET", "/v1/models", (401, {"error": {"message": "this needs an API key"}}))
    endpoints = Endpoints(gateway.url, neuron.url, "tok")
    assert await until_ready(endpoints, ("a",), start_nothing) == ("a",)


@pytest.mark.slow
async def test_it_is_ready_when_the_gateway_lists_every_model_as_loaded(servers, capsys):
    neuron, gateway = servers(), servers()
    loading = {"models": [{"id": "a", "progress": {"stage": "weights", "bytes_done": 1}}]}
    neuron.on("GET", "/health", activation(in_progress="a"))
    neuron.on("GET", "/models", loading)
    gateway.on("GET", "/health", (503, {}), {"status": "ok"})
    gateway.on("GET", "/v1/models", listed(), listed("a"), listed("a", "b"))
    endpoints = Endpoints(gateway.url, neuron.url, "tok")
    assert await until_ready(endpoints, ("a", "b"), start_nothing) == ("a", "b")
    assert neuron.headers[0]["authorization"] == "Bearer tok"
    assert "authorization" not in gateway.headers[0]
    assert "loading a: weights" in capsys.readouterr().err.splitlines()


async def test_the_gateway_is_started_when_the_neuron_answers(servers):
    neuron, gateway = servers(), servers()
    neuron.on("GET", "/health", (503, {}), activation())
    asked = []

    async def start_gateway():
        asked.append(len(neuron.asked))
        gateway.on("GET", "/health", {"status": "ok"})
        gateway.on("GET", "/v1/models", listed("a"))

    endpoints = Endpoints(gateway.url, neuron.url, "tok")
    assert await until_ready(endpoints, ("a",), start_gateway) == ("a",)
    assert asked == [2]


async def test_models_that_fail_are_told_and_the_others_are_served(servers, capsys):
    neuron, gateway = servers(), servers()
    neuron.on("GET", "/health", activation(failed=[{"model_id": "b", "error": "no such repo"}]))
    gateway.on("GET", "/health", {"status": "ok"})
    gateway.on("GET", "/v1/models", listed(), listed("a"))
    endpoints = Endpoints(gateway.url, neuron.url, "tok")
    assert await until_ready(endpoints, ("a", "b"), start_nothing) == ("a",)
    told = capsys.readouterr().err.splitlines()
    assert told.count("cortex up: b: no such repo") == 1


async def test_it_gives_up_when_every_model_failed(servers):
    neuron, gateway = servers(), servers()
    neuron.on("GET", "/health", activation(failed=[{"model_id": "a", "error": "no"}]))
    gateway.on("GET", "/health", {"status": "ok"})
    gateway.on("GET", "/v1/models", listed())
    with pytest.raises(NotReady, match="no model could be loaded"):
        await until_ready(Endpoints(gateway.url, neuron.url, "tok"), ("a",), start_nothing)


async def test_a_part_that_never_answers_is_named(nobody, autojump_clock):
    with pytest.raises(NotReady, match=f"the neuron does not answer at {nobody}"):
        await until_ready(Endpoints(nobody, nobody, "tok"), ("a",), start_nothing)
