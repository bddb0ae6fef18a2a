"""Files and environment to configurations: precedence, strictness, one clear line per error."""

from pathlib import Path
from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.environment import variables_of
from cortex.config.gateway import LOCAL, GatewayConfig, GatewaySettings, NeuronNode
from cortex.config.loader import (
    ConfigError,
    load_catalogue,
    load_gateway,
    load_neuron,
    read_catalogue,
    state_directory,
)
from cortex.config.neuron import DefaultModel, NeuronConfig


@pytest.fixture
def write(tmp_path):
    def write(text, name="cortex.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(load, path, environ=None):
    with pytest.raises(ConfigError) as error:
        load(path, environ or {})
    line = str(error.value)
    assert "\n" not in line
    return line


def test_without_file_or_variables_the_defaults_hold():
    config = load_gateway(None, {})
    assert config == GatewayConfig()
    assert config.neurons == (LOCAL,)
    assert config.gateway.listen == "127.0.0.1:31313"
    assert load_catalogue(config) == Catalogue()
    neuron = load_neuron(None, {"HOME": "/home/someone"})
    assert neuron.listen == "127.0.0.1:13131"
    assert str(neuron.state_directory) == "/home/someone/.local/state/cortex"


def test_no_file_is_read_that_nobody_named(tmp_path, monkeypatch):
    (tmp_path / "cortex.toml").write_text("not toml at all")
    (tmp_path / "neuron.toml").write_text("not toml at all")
    monkeypatch.chdir(tmp_path)
    assert load_gateway(None, {}) == GatewayConfig()
    load_neuron(None, {})


def test_a_file_named_by_a_variable_is_read(write):
    path = write("[gateway]\nqueue_depth = 7")
    assert load_gateway(None, {"CORTEX_CONFIG": str(path)}).gateway.queue_depth == 7
    path = write("threads = 7", "neuron.toml")
    assert load_neuron(None, {"NEURON_CONFIG": str(path)}).threads == 7


def test_the_environment_wins_over_the_file(write):
    path = write('[gateway]\nlisten = "127.0.0.1:1"\nqueue_depth = 7\n[eviction]\nkeep_alive = 5')
    environ = {
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:2",
        "CORTEX_EVICTION__KEEP_ALIVE": "2h",
        "UNRELATED": "x",
    }
    config = load_gateway(path, environ)
    assert config.gateway == GatewaySettings(listen="127.0.0.1:2", queue_depth=7)
    assert config.eviction.keep_alive == 7200
    assert config.warnings == ()
    assert config.source == path


def test_an_empty_variable_counts_as_not_set():
    assert load_gateway(None, {"CORTEX_GATEWAY__LISTEN": "", "CORTEX_NEURONS": ""}) == (
        GatewayConfig()
    )


def test_a_duration_may_be_a_number_or_a_text(write):
    for text, seconds in [("1800", 1800), ('"30m"', 1800), ("-1", -1), ('"-1"', -1), ("0.5", 0.5)]:
        config = load_gateway(write(f"[eviction]\nkeep_alive = {text}"), {})
        assert config.eviction.keep_alive == seconds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[gateway]\nlisen = "127.0.0.1:1"', "gateway.lisen: unknown key (did you mean 'listen'?)"),
        ("[gatway]", "gatway: unknown key (did you mean 'gateway'?)"),
        (
            "[zzz]",
            (
                "zzz: unknown key "
                "(known: auth, eviction, gateway, images, models_config, neurons, usage)"
            ),
        ),
        ('[gateway]\n"li sen" = 1', 'gateway."li sen": unknown key'),
        ('source = "x"', "source: unknown key"),
        ("warnings = []", "warnings: unknown key"),
        ('[gateway]\nqueue_depth = "5"', "gateway.queue_depth: expected an integer, got a string"),
        ("[gateway]\nqueue_depth = true", "gateway.queue_depth: expected an integer, got a bool"),
        ("[gateway]\nqueue_depth = 5.0", "gateway.queue_depth: expected an integer, got a number"),
        ("[gateway]\nqueue_depth = 0", "gateway.queue_depth: must be 1 or more, got 0"),
        ("[gateway]\ndrain_seconds = -1", "gateway.drain_seconds: must be 0 or more, got -1"),
        ("[gateway]\ndrain_seconds = true", "gateway.drain_seconds: expected seconds"),
        ("[gateway]\ndrain_seconds = nan", "gateway.drain_seconds: expected seconds"),
        ("[gateway]\ndrain_seconds = 1979-05-27", "gateway.drain_seconds: expected seconds"),
        ("[gateway]\npoll_seconds = 0", "gateway.poll_seconds: must be more than 0"),
        ('[gateway]\nlisten = "host"', 'gateway.listen: expected "host:port"'),
        ('[gateway]\nlisten = "host:99999"', "gateway.listen: '99999' is no port"),
        ("[gateway]\nlisten = 31313", "gateway.listen: expected a string, got an integer"),
        ('[gateway]\nmetrics_listen = "127.0.0.1:31313"', "gateway.metrics_listen: is the same"),
        ('[eviction]\nstrategy = "lrs"', "eviction.strategy: unknown value 'lrs' (did you mean"),
        ('[eviction]\nkeep_alive = "5x"', "eviction.keep_alive: expected seconds or a duration"),
        ("gateway = 3", "gateway: expected a table, got an integer"),
        ("neurons = 3", "neurons: expected an array, got an integer"),
        ("neurons = [3]", "neurons[0]: expected a table, got an integer"),
        ('[neurons]\nname = "a"', "neurons: expected an array, got a table"),
        ('[[neurons]]\nname = "a"', "neurons[0].endpoint: required key is missing"),
        ('[[neurons]]\nname = "a"\nendpoint = "tcp://x"', "neurons[0].endpoint: expected an http"),
        ('[[neurons]]\nname = "a b"\nendpoint = "http://x"', "neurons[0].name: 'a b' is no node"),
        ('[gateway]\ntls_key = "k"', "gateway.tls_certificate: required with tls_key"),
        ('[gateway]\ntls_certificate = "c"', "gateway.tls_key: required with tls_certificate"),
        ("models_config = 3", "models_config: expected a path, got an integer"),
        ("x =", "Invalid value"),
    ],
)
def test_an_error_names_file_key_path_and_reason(write, text, told):
    path = write(text)
    assert refusal(load_gateway, path).startswith(f"{path}: {told}")


def test_the_certificates_paths_are_relative_to_the_file(write):
    path = write('[gateway]\ntls_certificate = "c.pem"\ntls_key = "/etc/k.pem"\n')
    settings = load_gateway(path, {}).gateway
    assert settings.tls_certificate == path.parent / "c.pem"
    assert settings.tls_key == Path("/etc/k.pem")


def test_two_neurons_of_one_name_are_an_error(write):
    entry = '[[neurons]]\nname = "a"\nendpoint = "http://x"\n'
    assert "neurons[1].name: a neuron named 'a'" in refusal(load_gateway, write(entry * 2))


def test_a_named_file_that_cannot_be_read_is_an_error(tmp_path):
    missing = tmp_path / "missing.toml"
    assert refusal(load_gateway, missing) == f"{missing}: No such file or directory"
    assert str(missing) in refusal(load_gateway, None, {"CORTEX_CONFIG": str(missing)})
    assert str(missing) in refusal(load_neuron, None, {"NEURON_CONFIG": str(missing)})
    assert "Is a directory" in refusal(load_gateway, tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"x = '\xff'")
    assert "is no TOML in UTF-8" in refusal(load_gateway, binary)
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 100_000)
    assert str(deep) in refusal(load_gateway, deep)


@given(text=st.text(max_size=60))
def test_any_text_is_a_configuration_or_one_error_line(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    for load in (load_gateway, load_neuron):
        told = f"{path}: fine"
        try:
            load(path, {})
        except ConfigError as error:
            told = str(error)
        assert told.startswith(f"{path}: ")
        assert "\n" not in told


def test_an_error_of_a_variable_names_the_variable(write):
    path = write("")
    line = refusal(load_gateway, path, {"CORTEX_GATEWAY__QUEUE_DEPTH": "x"})
    assert line == "environment variable CORTEX_GATEWAY__QUEUE_DEPTH: expected an integer, got 'x'"
    line = refusal(load_gateway, path, {"CORTEX_GATEWAY__QUEUE_DEPTH": "0"})
    assert line.startswith("environment variable CORTEX_GATEWAY__QUEUE_DEPTH: must be 1 or more")
    line = refusal(load_neuron, None, {"NEURON_OFFLINE": "maybe"})
    assert line == "environment variable NEURON_OFFLINE: expected true or false, got 'maybe'"
    assert "NEURON_PORT" in refusal(load_neuron, None, {"NEURON_PORT": "70000"})
    assert "NEURON_MEMORY_FRACTION" in refusal(load_neuron, None, {"NEURON_MEMORY_FRACTION": "2"})
    assert "CORTEX_NEURON_TOKEN" in refusal(load_gateway, None, {"CORTEX_NEURON_TOKEN": "a b"})


def test_an_unknown_variable_is_warned_about_with_the_nearest_known():
    config = load_gateway(None, {"CORTEX_GATEWAY__LISEN": "x", "CORTEX_QQ": "y"})
    assert config.gateway == GatewaySettings()
    assert len(config.warnings) == 2
    assert "CORTEX_GATEWAY__LISEN" in config.warnings[0]
    assert "did you mean CORTEX_GATEWAY__LISTEN?" in config.warnings[0]
    (warning,) = load_neuron(None, {"NEURON_PROT": "1"}).warnings
    assert "did you mean NEURON_PORT?" in warning


@pytest.mark.parametrize("cls", [GatewayConfig, NeuronConfig])
def test_every_scalar_key_has_a_variable(cls):
    prefix = "CORTEX_" if cls is GatewayConfig else "NEURON_"
    load = load_gateway if cls is GatewayConfig else load_neuron
    examples = {str: "127.0.0.1:7", int: "3", float: "0.5", bool: "true"}
    for name, kind in variables_of(cls, prefix).items():
        if type(None) in get_args(kind):
            kind = get_args(kind)[0]
        text = "http://x" if name.endswith(("ENDPOINT", "ORIGINS")) else examples.get(kind, "3")
        text = "batch" if name.endswith("PRIORITY") else text
        if name in ("CORTEX_EVICTION__STRATEGY", "NEURON_TOKEN_FILE", "CORTEX_MODELS_CONFIG"):
            continue  # tested where they are at home
        other = {"CERTIFICATE": "KEY", "KEY": "CERTIFICATE"}.get(name.partition("TLS_")[2])
        pair = {f"CORTEX_GATEWAY__TLS_{other}": "other.pem"} if other else {}
        config = load(None, {name: text, **pair})
        assert config.warnings == ()
        assert attrs.evolve(config, source=None) != load(None, {})


def test_the_neurons_may_come_from_the_environment(write):
    path = write('[[neurons]]\nname = "filed"\nendpoint = "http://filed"')
    environ = {"CORTEX_NEURONS": "a=http://x:1/, b=https://y", "CORTEX_NEURON_TOKEN": "t"}
    assert load_gateway(path, environ).neurons == (
        NeuronNode("a", "http://x:1", token="t"),
        NeuronNode("b", "https://y", token="t"),
    )
    assert "CORTEX_NEURONS" in refusal(load_gateway, None, {"CORTEX_NEURONS": "http://x"})
    assert "CORTEX_NEURONS" in refusal(load_gateway, None, {"CORTEX_NEURONS": "a=x"})


def test_a_neurons_own_token_wins_over_the_common_one(write):
    path = write(
        '[[neurons]]\nname = "a"\nendpoint = "http://x"\ntoken = "own"\n'
        '[[neurons]]\nname = "b"\nendpoint = "http://y"'
    )
    nodes = load_gateway(path, {"CORTEX_NEURON_TOKEN": "common"}).neurons
    assert [node.token for node in nodes] == ["own", "common"]


FOREIGN = '[[neurons]]\nname = "f"\nendpoint = "https://f/v1"\nkind = "openai"\n'


def test_the_common_token_is_kept_from_servers_of_another_make(write):
    (node,) = load_gateway(write(FOREIGN), {"CORTEX_NEURON_TOKEN": "common"}).neurons
    assert (node.kind, node.token) == ("openai", None)


def test_a_nodes_token_may_lie_in_a_file_beside_the_config(write, tmp_path):
    (tmp_path / "key").write_text("sk-1\n")
    path = write(FOREIGN + 'token_file = "key"')
    (node,) = load_gateway(path, {"CORTEX_NEURON_TOKEN": "common"}).neurons
    assert node.token == "sk-1"
    assert "sk-1" not in repr(node)
    path = write(FOREIGN + 'token_file = "key"\ntoken = "t"')
    assert "neurons[0].token_file: token is given too" in refusal(load_gateway, path, {})
    (tmp_path / "key").write_text("")
    assert "is empty" in refusal(load_gateway, write(FOREIGN + 'token_file = "key"'), {})
    path = write(FOREIGN + 'token_file = "gone"')
    assert "neurons[0].token_file" in refusal(load_gateway, path, {})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('models = { "bad id" = "x" }', "neurons[0].models"),
        ('models = { "m" = "" }', "must not be empty"),
        ('headers = { "Host" = "x" }', "no header that can be set"),
        ('headers = { "x y" = "x" }', "no header that can be set"),
        ('headers = { "x-a" = "b\\n" }', "visible ASCII"),
        ("max_in_flight = 0", "1 or more"),
        ("poll_seconds = 0", "more than 0"),
        ('kind = "vllm"', "kind"),
    ],
)
def test_what_is_said_of_a_server_of_another_make_is_checked(write, line, told):
    text = FOREIGN.replace('kind = "openai"\n', "") if line.startswith("kind") else FOREIGN
    assert told in refusal(load_gateway, write(text + line), {})


@pytest.mark.parametrize("line", ['include = ["x"]', "max_in_flight = 3", 'drop_fields = ["user"]'])
def test_what_is_for_those_alone_is_an_error_elsewhere(write, line):
    path = write('[[neurons]]\nname = "a"\nendpoint = "http://x"\n' + line)
    assert 'is for kind = "openai" only' in refusal(load_gateway, path, {})


def test_an_empty_list_of_neurons_is_warned_about(write):
    config = load_gateway(write("neurons = []"), {})
    assert config.neurons == ()
    assert "no neurons" in config.warnings[0]


# The catalogue


def test_the_catalogue_beside_the_config_is_read(write):
    path = write("")
    assert load_catalogue(load_gateway(path, {})) == Catalogue()
    beside = write('[[models]]\nid = "a"', "models.toml")
    config = load_gateway(path, {})
    assert config.models_config == beside
    assert load_catalogue(config).models == {"a": CatalogueEntry("a")}


def test_a_named_catalogue_must_be_there_and_is_relative_to_the_config(write, tmp_path):
    path = write('models_config = "other/models.toml"')
    config = load_gateway(path, {})
    assert config.models_config == tmp_path / "other" / "models.toml"
    with pytest.raises(ConfigError, match="No such file"):
        load_catalogue(config)


def test_a_variable_may_name_the_catalogue(write):
    path = write('[[models]]\nid = "a"', "elsewhere.toml")
    config = load_gateway(None, {"CORTEX_MODELS_CONFIG": str(path)})
    assert set(load_catalogue(config).models) == {"a"}


def test_a_catalogue_keeps_every_key_of_an_entry(write):
    path = write(
        """
        [[models]]
        id = "big"
        source = "huggingface:org/big"
        harness = "torch"
        quant = "q4_k_m"
        vram_mb = 1
        min_devices = 2
        min_device_vram_mb = 3
        pinned_on = ["a"]
        residency_priority = 4
        context = 5
        keep_alive = "1m"
        tensor_parallel = 2
        capabilities = ["text"]
        limit = { context = 6 }
        cost = { input = 1, output = 0.5 }
        [aliases]
        "a/b" = "big"
        """,
        "models.toml",
    )
    catalogue = read_catalogue(path)
    assert catalogue.aliases == {"a/b": "big"}
    assert catalogue.models["big"] == CatalogueEntry(
        id="big",
        source="huggingface:org/big",
        harness="torch",
        quant="q4_k_m",
        vram_mb=1,
        min_devices=2,
        min_device_vram_mb=3,
        pinned_on=("a",),
        residency_priority=4,
        context=5,
        keep_alive=60.0,
        tensor_parallel=2,
        capabilities=("text",),
        limit={"context": 6},
        cost={"input": 1.0, "output": 0.5},
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[[models]]\nid = "a"\n[[models]]\nid = "a"',
            "models[1].id: a model 'a' is listed before",
        ),
        ('[[models]]\nid = "a b"', "models[0].id: 'a b' is no model id"),
        ('[[models]]\nid = "a"\nvram_mb = -1', "models[0].vram_mb: must be 0 or more"),
        ('[[models]]\nid = "a"\nmin_devices = 0', "models[0].min_devices: must be 1 or more"),
        ('[[models]]\nid = "a"\nharness = "llama"', "models[0].harness: unknown value 'llama'"),
        ('[[models]]\nid = "a"\nvram = 1', "models[0].vram: unknown key (did you mean 'vram_mb'?)"),
        ('[[models]]\nid = "a"\nlimit = {contxt = 1}', "models[0].limit.contxt: unknown key (did"),
        ('[[models]]\nid = "a"\nlimit = {context = "1"}', "models[0].limit.context: expected an"),
        ('[[models]]\nid = "a"\ncost = {input = -1.0}', "models[0].cost.input: must be 0 or more"),
        ('[[models]]\nid = "a"\ncapabilities = ["txt"]', "models[0].capabilities[0]: unknown cap"),
        ('[[models]]\nid = "a"\npinned_on = "x"', "models[0].pinned_on: expected an array"),
        ('[[models]]\nid = "a"\npinned_on = [1]', "models[0].pinned_on[0]: expected a string"),
        ('[[models]]\nid = "abc"\n[aliases]\nx = "abd"', "aliases.\"x\": unknown model 'abd' (did"),
        ('[[models]]\nid = "a"\n[aliases]\nx = "y"\ny = "a"', "aliases.\"x\": 'y' is an alias its"),
        ('[[models]]\nid = "a"\n[aliases]\na = "a"', 'aliases."a": a model has this id'),
        ("[aliases]\nx = 1", "aliases.x: expected a string"),
        ("[models]", "models: expected an array, got a table"),
    ],
)
def test_an_error_in_the_catalogue_names_its_key(write, text, told):
    path = write(text, "models.toml")
    with pytest.raises(ConfigError) as error:
        read_catalogue(path)
    assert str(error.value).startswith(f"{path}: {told}")


def test_a_pin_on_an_unknown_neuron_is_warned_about(write):
    write('[[models]]\nid = "a"\npinned_on = ["lokal"]', "models.toml")
    (warning,) = load_catalogue(load_gateway(write(""), {})).warnings
    assert "pinned_on of a: unknown neuron 'lokal' (did you mean 'local'?)" in warning


# The neuron


def test_a_port_is_the_port_of_listen(write):
    assert load_neuron(write("port = 5"), {}).listen == "127.0.0.1:5"
    assert load_neuron(write('port = 5\nlisten = "0.0.0.0"'), {}).listen == "0.0.0.0:5"
    assert load_neuron(write('port = 5\nlisten = "[::1]:5"'), {}).listen == "[::1]:5"
    assert load_neuron(write('listen = "0.0.0.0:5"'), {"NEURON_PORT": "6"}).listen == "0.0.0.0:6"
    assert load_neuron(write("port = 5"), {"NEURON_LISTEN": "0.0.0.0:7"}).listen == "0.0.0.0:7"
    assert load_neuron(None, {"NEURON_PORT": "0"}).listen == "127.0.0.1:0"


def test_a_port_alone_is_warned_to_be_local(write):
    assert "127.0.0.1" in load_neuron(write("port = 5"), {}).warnings[0]
    assert load_neuron(None, {"NEURON_PORT": "5"}).warnings == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('port = 5\nlisten = "x:6"', "port: listen says 6"),
        ("port = 70000", "port: expected a port"),
        ('port = "5"', "port: expected a port"),
        ("port = true", "port: expected a port"),
        ('listen = "x"', 'listen: expected "host:port"'),
        ("memory_fraction = 0", "memory_fraction: must be more than 0 and at most 1"),
        ("memory_fraction = 1.1", "memory_fraction: must be more than 0 and at most 1"),
        ("max_batch = 0", "max_batch: must be 1 or more"),
        ('hub_endpoint = "hub"', "hub_endpoint: expected an http or https URL"),
        ('token = "a b"', "token: a token is visible ASCII"),
        ('token = ""', "token: a token is visible ASCII"),
        (
            '[[default_models]]\nid = "a"',
            "default_models[0].id: unknown key (did you mean 'model_id",
        ),
        ('[[default_models]]\nsource = "a"', "default_models[0].model_id: required key is missing"),
        ('[[default_models]]\nmodel_id = "a"\ndevices = [0, 0]', "default_models[0].devices: expe"),
        (
            '[[default_models]]\nmodel_id = "a"\n[[default_models]]\nmodel_id = "a"',
            "default_models[1].model_id: a model 'a' is listed before",
        ),
    ],
)
def test_an_error_in_the_neurons_file_names_its_key(write, text, told):
    path = write(text, "neuron.toml")
    assert refusal(load_neuron, path).startswith(f"{path}: {told}")


def test_a_token_may_be_in_a_file_beside_the_config(write, tmp_path):
    (tmp_path / "secret").write_text("  tok-1\n")
    path = write('token_file = "secret"', "neuron.toml")
    assert load_neuron(path, {}).token == "tok-1"
    assert load_neuron(path, {"NEURON_TOKEN": "tok-2"}).token == "tok-2"
    environ = {"NEURON_TOKEN_FILE": str(tmp_path / "secret")}
    assert load_neuron(None, environ).token == "tok-1"
    assert load_neuron(write('token = "filed"'), environ).token == "tok-1"


def test_a_token_file_must_hold_a_token(write, tmp_path):
    path = write('token_file = "secret"', "neuron.toml")
    assert "No such file" in refusal(load_neuron, path)
    (tmp_path / "secret").write_text("\n")
    assert "is empty" in refusal(load_neuron, path)
    (tmp_path / "secret").write_bytes(b"\xff")
    assert "visible ASCII" in refusal(load_neuron, path)
    (tmp_path / "secret").write_text("a b")
    assert "visible ASCII" in refusal(load_neuron, path)
    both = write('token = "x"\ntoken_file = "secret"', "neuron.toml")
    assert "keep one of the two" in refusal(load_neuron, both)


def test_paths_start_at_the_files_folder_or_at_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    path = write(
        'hf_cache = "hub"\nstate_directory = "~/state"\n'
        '[[default_models]]\nmodel_id = "a"\nsource = "./weights"\n'
        '[[default_models]]\nmodel_id = "b"\nsource = "org/b"\n'
        '[[default_models]]\nmodel_id = "c"\nsource = "/abs"\n'
    )
    config = load_neuron(path, {})
    assert config.hf_cache == tmp_path / "hub"
    assert str(config.state_directory) == "/home/someone/state"
    sources = [model.source for model in config.default_models]
    assert sources == [str(tmp_path / "weights"), "org/b", "/abs"]


def test_default_models_may_come_from_the_environment(write, tmp_path):
    path = write('[[default_models]]\nmodel_id = "filed"')
    config = load_neuron(path, {"NEURON_DEFAULT_MODELS": f"org/a, {tmp_path}"})
    assert config.default_models == (
        DefaultModel("org/a"),
        DefaultModel(tmp_path.name, source=str(tmp_path)),
    )
    assert "no model id" in refusal(load_neuron, None, {"NEURON_DEFAULT_MODELS": "a b"})


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"STATE_DIRECTORY": "/var/lib/cortex:/var/lib/x", "HOME": "/h"}, "/var/lib/cortex"),
        ({"XDG_STATE_HOME": "/xdg", "HOME": "/h"}, "/xdg/cortex"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/cortex"),
        ({"HOME": "/h"}, "/h/.local/state/cortex"),
    ],
)
def test_the_state_directory_is_systemds_or_the_users(environ, place):
    assert str(state_directory(environ)) == place
