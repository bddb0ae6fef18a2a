"""Which files of a repository make a model."""

from __future__ import annotations

import json

import pytest

from cortex.errors import CheckpointError
from cortex.neuron.hub_files import (
    INDEX,
    MAX_SMALL_BYTES,
    SINGLE,
    RemoteFile,
    choose_small,
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
    assert names_of(choose_small("o/m", files)) == ["config.json", "tokenizer.json"]
    assert names_of(choose_weights("o/m", files, None)) == [SINGLE]


def test_how_an_embedding_model_pools_comes_along() -> None:
    files = remote("config.json", SINGLE, "modules.json", "1_Pooling/config.json", "2_Dense/a.json")
    assert {"modules.json", "1_Pooling/config.json"} <= set(names_of(choose_small("o/m", files)))
    assert "2_Dense/a.json" not in names_of(choose_small("o/m", files))


def test_shards_are_those_that_the_index_names() -> None:
    files = remote("config.json", INDEX, "b.safetensors", "a.safetensors", "stray.safetensors")
    assert INDEX in names_of(choose_small("o/m", files))
    chosen = choose_weights("o/m", files, index_of("b.safetensors", "a.safetensors"))
    assert names_of(chosen) == ["a.safetensors", "b.safetensors"]
    with pytest.raises(CheckpointError, match=r"lacks c\.safetensors"):
        choose_weights("o/m", files, index_of("c.safetensors"))


@pytest.mark.parametrize(
    "names", [(), ("config.json",), (SINGLE,), ("config.json", "model.gguf", "a.safetensors")]
)
def test_what_is_no_safetensors_model_says_what_it_has(names: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="it has: ") as caught:
        choose_small("o/m", remote(*names))
    assert all(name.rpartition(".")[2] in caught.value.message for name in names)


def test_an_absurd_configuration_is_refused() -> None:
    files = remote("config.json", SINGLE, size=MAX_SMALL_BYTES + 1)
    with pytest.raises(CheckpointError, match="absurdly large"):
        choose_small("o/m", files)


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
    ],
)
def test_what_is_no_hash_names_no_blob(etag: str, size: int, sha256: bool) -> None:
    assert not RemoteFile("f", size, etag, sha256).is_sound
