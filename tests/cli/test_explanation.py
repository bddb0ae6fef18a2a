"""What a configuration comes to, in sentences."""

from __future__ import annotations

import pytest

from cortex.cli import explanation
from cortex.config.accounts import AuthSettings
from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import (
    EvictionSettings,
    GatewayConfig,
    GatewaySettings,
    ImageSettings,
    NeuronNode,
)
from cortex.config.neuron import DefaultModel, NeuronConfig

GPU1 = NeuronNode("gpu1", "http://gpu1:13131", token="s3cret")
THEIRS = NeuronNode("vllm", "http://vllm:8000/v1", kind="openai")


def gateway(catalogue=None, **parts):
    parts.setdefault("neurons", (GPU1,))
    return "\n".join(explanation.of_gateway(GatewayConfig(**parts), catalogue or Catalogue()))


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("127.0.0.1:31313", "only this machine reaches it"),
        ("0.0.0.0:31313", "whoever reaches any address of this machine"),
        ("10.0.0.5:31313", "whoever reaches 10.0.0.5 reaches it"),
        ("127.0.0.1:0", "the port is chosen at start"),
    ],
)
def test_who_reaches_it(listen, words):
    assert words in gateway(gateway=GatewaySettings(listen=listen))


@pytest.mark.parametrize(
    ("listen", "auth", "words"),
    [
        ("127.0.0.1:1", AuthSettings(), "Nobody needs a key until there is one"),
        ("0.0.0.0:1", AuthSettings(), "Nobody is served until there is a key"),
        ("0.0.0.0:1", AuthSettings(anonymous=False), "Every request needs a key"),
        ("0.0.0.0:1", AuthSettings(anonymous=True), "Nobody needs a key."),
        (
            "0.0.0.0:1",
            AuthSettings(anonymous=True, anonymous_rpm=5, anonymous_models=("a", "b")),
            "Nobody needs a key, within the models a, b and 5 requests a minute.",
        ),
    ],
)
def test_who_may_use_it(listen, auth, words):
    assert words in gateway(gateway=GatewaySettings(listen=listen), auth=auth)


def test_nodes_and_no_token_is_shown():
    text = gateway(neurons=(GPU1, THEIRS))
    assert "gpu1 at http://gpu1:13131 is a neuron, asked with a token." in text
    assert "vllm at http://vllm:8000/v1 is a server of another make" in text
    assert "s3cret" not in text
    assert "no model can be served" in gateway(neurons=())


def test_models_come_from_somewhere_and_may_go_somewhere():
    entries = (
        CatalogueEntry("org/m", vram_mb=500, keep_alive=60.0),
        CatalogueEntry("here", source="/models/here", quant="q4_k_m", keep_alive=-1.0),
        CatalogueEntry("cortex/demo", pinned_on=("gpu1",)),
        CatalogueEntry("lost", pinned_on=("gpu9",), min_device_vram_mb=10),
    )
    text = gateway(Catalogue(entries, {"gpt-4": "org/m"}), neurons=(GPU1, THEIRS))
    assert (
        "org/m comes from the hub's org/m, takes 500 MiB, may be loaded on gpu1, and is unloaded "
        "when nobody has used it for 60 s."
    ) in text
    assert "the neuron's own /models/here as q4_k_m" in text
    assert "stays when nobody uses it" in text
    assert "cortex/demo is the demonstration model" in text
    assert "may be loaded on gpu1 alone and is never evicted there" in text
    assert "no such neuron is configured: it can be loaded nowhere" in text
    assert "gpt-4 is another name for org/m." in text
    theirs = gateway(Catalogue((CatalogueEntry("t", pinned_on=("vllm",)),)), neurons=(THEIRS,))
    assert "is had from vllm alone, where nothing is loaded on request" in theirs
    only_theirs = gateway(Catalogue(entries[:1]), neurons=(THEIRS,))
    assert "can be loaded nowhere, since no neuron of ours" in only_theirs
    assert "may be loaded on every neuron" in "\n".join(
        explanation.of_catalogue(Catalogue(entries[:1]))
    )


def test_eviction_and_images_in_a_sentence():
    text = gateway(
        eviction=EvictionSettings(strategy="priority", keep_alive=0.0),
        images=ImageSettings(fetch=True, allow_http=True),
    )
    assert "lowest residency_priority first" in text
    assert "is unloaded as soon as its last request ends" in text
    assert "fetched, over https and http, up to 10 MiB" in text
    assert "Images that a request names by URL are refused." in gateway()


def test_a_neuron():
    config = NeuronConfig(
        listen="0.0.0.0:13131",
        default_models=(DefaultModel("org/m", devices=(0, 1)),),
        offline=True,
        memory_fraction=0.8,
    )
    text = "\n".join(explanation.of_neuron(config))
    for words in (
        "everybody who reaches it may use it",
        "80% of each device's memory",
        "org/m comes from the hub's org/m and is loaded at start on device 0, 1.",
        "The hub is never asked",
    ):
        assert words in text
    assert "Who asks must say its token" in "\n".join(
        explanation.of_neuron(NeuronConfig(token="s3cret"))
    )
    alone = "\n".join(explanation.of_neuron(NeuronConfig()))
    assert "everybody on this machine may use it" in alone
    assert "Nothing is loaded at start" in alone
