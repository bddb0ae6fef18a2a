"""The original's files load: keys are honoured, renamed with a hint, or ignored with a warning."""

import pytest

from cortex.config.loader import ConfigError, load_gateway, load_neuron, read_catalogue


@pytest.fixture
def write(tmp_path):
    def write(text, name="any.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_nodes_are_neurons_with_a_hint(write):
    config = load_gateway(write('[[nodes]]\nname = "a"\nendpoint = "http://x"'), {})
    assert [node.name for node in config.neurons] == ["a"]
    (warning,) = config.warnings
    assert "[[neurons]]" in warning


def test_nodes_beside_neurons_are_an_error(write):
    path = write("nodes = []\nneurons = []")
    with pytest.raises(ConfigError, match="nodes: is here as neurons too"):
        load_gateway(path, {})


def test_the_originals_gateway_file_loads(write):
    path = write(
        """
        models_config = "models.toml"
        [gateway]
        listen = "0.0.0.0:31313"
        metrics_listen = "0.0.0.0:31314"
        [eviction]
        strategy = "lru"
        defrag_after_cycles = 50
        [[neurons]]
        name = "beast"
        endpoint = "http://beast:13131"
        [entitlements]
        require_auth = true
        [[entitlements.keys]]
        key = "k"
        account_id = "a"
        [upstream]
        enabled = false
        """
    )
    config = load_gateway(path, {})
    assert config.gateway.listen == "0.0.0.0:31313"
    assert [w.removeprefix(f"{path}: ").split(" ")[0] for w in config.warnings] == [
        "entitlements",
        "upstream",
    ]
    assert "NOT authenticated" in config.warnings[0]


def test_the_originals_catalogue_loads_and_tells_what_has_no_effect(write):
    catalogue = read_catalogue(
        write(
            """
            [[models]]
            id = "Qwen/Qwen3-8B"
            harness = "candle"
            quant = "Q4_K_M"
            vram_mb = 6000
            min_devices = 1
            min_device_vram_mb = 8000
            pinned_on = ["beast"]
            residency_priority = 1000
            source = "huggingface"
            capabilities = ["text"]
            limit = { context = 32768, output = 8192 }
            cost = { input = 0.1, output = 0.4 }
            [aliases]
            "helexa/small" = "Qwen/Qwen3-8B"
            """
        )
    )
    assert catalogue.models["Qwen/Qwen3-8B"].harness == "torch"
    assert catalogue.models["Qwen/Qwen3-8B"].residency_priority == 1000
    assert catalogue.warnings == ()


def test_the_originals_neuron_file_loads(write, tmp_path):
    path = write(
        """
        port = 13131
        [[harnesses]]
        name = "candle"
        [harness.candle]
        hf_cache = "/var/lib/neuron/hub"
        default_source = "huggingface"
        [harness.candle.sources.huggingface]
        endpoint = "https://mirror.example"
        auth_env = "HF_TOKEN"
        [harness.candle.prefix_cache]
        enabled = true
        [harness.candle.context_limit]
        enabled = true
        [harness.candle.admission]
        max_in_flight = 1
        max_queue_depth = 8
        [harness.candle.image]
        te_device = "cpu"
        [[default_models]]
        model_id = "Qwen/Qwen3-8B"
        harness = "candle"
        quant = "Q4_K_M"
        tensor_parallel = 2
        devices = [0, 1]
        """
    )
    config = load_neuron(path, {})
    assert str(config.hf_cache) == "/var/lib/neuron/hub"
    assert config.hub_endpoint == "https://mirror.example"
    assert config.max_queue_depth == 8
    (model,) = config.default_models
    assert (model.harness, model.devices) == ("torch", (0, 1))
    told = "\n".join(config.warnings)
    for key in ("sources", "prefix_cache", "context_limit", "admission", "image"):
        assert f"harness.candle.{key} is ignored" in told
    assert "harnesses" not in told
    assert "default_source" not in told


def test_the_seeds_neuron_file_loads_without_a_warning_about_its_engine(write):
    path = write(
        'listen = "0.0.0.0"\nport = 13131\n[[harnesses]]\nname = "candle"\n'
        '[harness.candle]\nhf_cache = "hub"'
    )
    assert load_neuron(path, {}).warnings == ()


def test_another_engine_is_warned_about(write):
    path = write('[[harnesses]]\nname = "llamacpp"\n[harness.llamacpp]\nbinary = "x"')
    told = "\n".join(load_neuron(path, {}).warnings)
    assert "harnesses is ignored" in told
    assert "harness is ignored" in told


def test_an_old_and_a_new_key_together_are_an_error(write):
    path = write('hf_cache = "a"\n[harness.candle]\nhf_cache = "b"')
    with pytest.raises(ConfigError, match=r"harness\.candle\.hf_cache: is here as hf_cache too"):
        load_neuron(path, {})
