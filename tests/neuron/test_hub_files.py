"""Which files of a repository make a model."""

from __future__ import annotations

import json

import pytest

from cortex.errors import CheckpointError, UnsupportedLoad
from cortex.neuron.hub_files import (
    INDEX,
    MAX_SMALL_BYTES,
    SINGLE,
    RemoteFile,
    choose_files,
    choose_weights,
    shard_names,
)


def remote(*names: str, size: int = 10) -> list[RemoteFile]:
    return [RemoteFile(name, size, "0" * 40, False) for name in names]


def names_of(files: tuple[RemoteFile, ...]) -> list[str]:
    return [file.name for file in files]


def index_of(*names: object) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}}).encode()


def test_only_what_the_engine_reads_is_chosen() -> None:
    files = remote("config.json", "tokenizer.json", SINGLE, INDEX, "README.md", "pytorch_model.bin")
    chosen = choose_files("o/m", files, None)
    assert names_of(chosen.small) == ["config.json", "tokenizer.json"]
    assert chosen.gguf == ()
    assert names_of(choose_weights("o/m", files, None)) == [SINGLE]


def test_how_an_embedding_model_pools_comes_along() -> None:
    files = remote("config.json", SINGLE, "modules.json", "1_Pooling/config.json", "2_Dense/a.json")
    assert {"modules.json", "1_Pooling/config.json"} <= set(
        names_of(choose_files("o/m", files, None).small)
    )
    assert "2_Dense/a.json" not in names_of(choose_files("o/m", files, None).small)


def test_shards_are_those_that_the_index_names() -> None:
    files = remote("config.json", INDEX, "b.safetensors", "a.safetensors", "stray.safetensors")
    assert INDEX in names_of(choose_files("o/m", files, None).small)
    chosen = choose_weights("o/m", files, index_of("b.safetensors", "a.safetensors"))
    assert names_of(chosen) == ["a.safetensors", "b.safetensors"]
    with pytest.raises(CheckpointError, match=r"lacks c\.safetensors"):
        choose_weights("o/m", files, index_of("c.safetensors"))


GGUF = ("README.md", "config.json", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-m-F16.gguf")
PARTS = ("Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K/m-Q6_K-00002-of-00002.gguf")


def test_of_gguf_files_one_is_chosen_with_what_is_beside_it() -> None:
    files = remote(*GGUF, *PARTS)
    chosen = choose_files("o/m", files, None)
    assert names_of(chosen.gguf) == ["m-Q4_K_M.gguf"]
    assert names_of(chosen.small) == ["config.json"]
    assert names_of(choose_files("o/m", files, "q8_0").gguf) == ["m-Q8_0.gguf"]
    assert names_of(choose_files("o/m", files, "Q6_k").gguf) == [*PARTS]
    with pytest.raises(UnsupportedLoad, match=r"o/m has no q5_k_m; it has Q4_K_M, Q6_K, Q8_0"):
        choose_files("o/m", files, "q5_k_m")


def test_safetensors_come_before_gguf_files_that_are_not_asked_for() -> None:
    files = remote(*GGUF, SINGLE)
    assert choose_files("o/m", files, None).gguf == ()
    assert names_of(choose_files("o/m", files, "q4_k_m").gguf) == ["m-Q4_K_M.gguf"]
    assert choose_files("o/m", files, "q5_k_m").gguf == ()  # for quantisation at load


def test_a_quant_that_is_none_is_refused_before_anything_is_fetched() -> None:
    files = remote("config.json", SINGLE)
    for quant in ("q4_k_m", "Q8_0", "awq", "fp8"):
        assert names_of(choose_files("o/m", files, quant).small) == ["config.json"]
    with pytest.raises(UnsupportedLoad, match="quant 'q4_k_mm' is not known") as caught:
        choose_files("o/m", files, "q4_k_mm")
    assert caught.value.param == "quant"


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("config.json",),
        (SINGLE,),
        ("config.json", "mmproj-model.gguf", "a.safetensors"),
        ("m-00001-of-00002.gguf",),
        ("../m-Q8_0.gguf", "a/b/m-Q8_0.gguf", "-/../m.gguf", "m\\n.gguf", ".hidden.gguf"),
    ],
)
def test_what_is_no_model_says_what_it_has(names: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="it has: ") as caught:
        choose_files("o/m", remote(*names), None)
    assert all(name.rpartition(".")[2] in caught.value.message for name in names)


def test_an_absurd_configuration_is_refused() -> None:
    files = remote("config.json", SINGLE, size=MAX_SMALL_BYTES + 1)
    with pytest.raises(CheckpointError, match="absurdly large"):
        choose_files("o/m", files, None)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 1, "b": "x"}}',
        b'{"weight_map": {"a": ["x"]}}',
        b"[" * 100_000,
        index_of(1),
        index_of("../a.safetensors"),
        index_of("/a.safetensors"),
        index_of("a/b.safetensors"),
        index_of("a\\b.safetensors"),
        index_of("a\0.safetensors"),
        index_of("..safetensors"),
        index_of("a.bin"),
        index_of("a.safetensors\n"),
    ],
)
def test_a_hostile_index_is_refused(index: bytes) -> None:
    with pytest.raises(CheckpointError):
        shard_names(index)


@pytest.mark.parametrize(
    ("etag", "size", "sha256"),
    [
        ("a" * 40, 1, True),
        ("a" * 64, 1, False),
        ("../" + "a" * 37, 1, False),
        ("A" * 40, 1, False),
        ("a" * 40, -1, False),
        ("a" * 40, 10**40, False),  # no JSON of ours could tell it
        ("a" * 40, True, False),
    ],
)
def test_what_is_no_hash_names_no_blob(etag: str, size: int, sha256: bool) -> None:
    assert not RemoteFile("f", size, etag, sha256).is_sound
