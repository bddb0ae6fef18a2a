"""Corrupt, truncated and hostile checkpoints: a clear error, and a process that goes on."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoints import TINY, write_checkpoint
from fakes.requests import ask, drain

from cortex.engine.load.checkpoint import estimate, open_engine, read_config
from cortex.engine.load.safetensors import SafetensorsFile
from cortex.errors import CheckpointError, UnsupportedModel

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def header_of(directory: Path) -> tuple[dict[str, Any], bytes]:
    data = (directory / MODEL).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(directory: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    stated = len(header) if length is None else length
    (directory / MODEL).write_bytes(struct.pack("<Q", stated) + header + data)


def edit_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        header, data = header_of(directory)
        change(header)
        write_raw(directory, json.dumps(header).encode(), data)

    return apply


def edit_config(**changes: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps({**TINY, **changes}))

    return apply


def edit_entry(name: str, **changes: object) -> Callable[[Path], None]:
    return edit_header(lambda header: header[name].update(changes))


def swap_offsets(header: dict[str, Any]) -> None:
    names = [name for name in header if name.endswith("gate_proj.weight")]
    names.sort(key=lambda name: header[name]["data_offsets"])
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def shift(header: dict[str, Any]) -> None:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


def truncate(count: int) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        os.truncate(directory / MODEL, count)

    return apply


def shorten(directory: Path) -> None:
    os.truncate(directory / MODEL, (directory / MODEL).stat().st_size - 1)


def append(directory: Path) -> None:
    with (directory / MODEL).open("ab") as file:
        file.write(b"x")


def index(weight_map: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        (directory / MODEL).rename(directory / "a.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return apply


def two_shards_alike(directory: Path) -> None:
    names = [name for name in header_of(directory)[0] if name != "__metadata__"]
    (directory / "b.safetensors").write_bytes((directory / MODEL).read_bytes())
    index({name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(names)})(directory)


def raw_header(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    return lambda directory: write_raw(directory, header, b"", length)


NORM = "model.norm.weight"
DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000

FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda d: (d / MODEL).unlink(), "neither"),
    "empty file": (truncate(0), "too short"),
    "seven bytes": (truncate(7), "too short"),
    "header cut": (truncate(60), "not all there"),
    "one byte short": (shorten, "truncated"),
    "one byte more": (append, "unused bytes after"),
    "header of 2^63": (raw_header(b"{}", 1 << 63), "over the limit"),
    "header beyond the file": (raw_header(b"{}", 90_000_000), "not all there"),
    "header of no bytes": (raw_header(b""), "not all there"),
    "header not JSON": (raw_header(b"{nope}"), "not JSON"),
    "header not UTF-8": (raw_header(b'{"\xff\xfe": 1}'), "not JSON"),
    "header a list": (raw_header(b"[1, 2]"), "not a JSON object"),
    "header too deep": (raw_header(DEEP), "not JSON"),
    "name twice": (
        raw_header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}'),
        "occurs twice",
    ),
    "entry a number": (edit_header(lambda h: h.update({NORM: 5})), "not an object"),
    "unknown dtype": (edit_entry(NORM, dtype="F33"), "unknown dtype F33"),
    "dtype a list": (edit_entry(NORM, dtype=[1]), "unknown dtype"),
    "integer weights": (edit_entry(NORM, dtype="I32"), "I32, not a float"),
    "shape negative": (edit_entry(NORM, shape=[-32]), "not a size"),
    "shape a float": (edit_entry(NORM, shape=[32.0]), "not a size"),
    "shape a bool": (edit_entry(NORM, shape=[True]), "not a size"),
    "shape a string": (edit_entry(NORM, shape="32"), "not a list"),
    "shape of 9 dimensions": (edit_entry(NORM, shape=[1] * 8 + [32]), "not a list"),
    "shape beyond 2^64": (edit_entry(NORM, shape=[1 << 40, 1 << 40]), "bytes of data"),
    "shape larger than data": (edit_entry(NORM, shape=[33]), "bytes of data"),
    "offsets reversed": (edit_entry(NORM, data_offsets=[128, 0]), "bytes of data"),
    "offsets negative": (edit_entry(NORM, data_offsets=[-128, 0]), "not a size"),
    "offsets beyond the file": (
        edit_entry(NORM, data_offsets=[1 << 40, (1 << 40) + 128]),
        "unused bytes before",
    ),
    "offsets three": (edit_entry(NORM, data_offsets=[0, 1, 2]), "not a pair"),
    "overlap": (edit_header(swap_offsets), "overlaps"),
    "gap": (edit_header(shift), "unused bytes before"),
    "tensor missing": (
        edit_header(lambda h: h.update(other=h.pop(NORM))),
        "'model.norm.weight' is missing",
    ),
    "tensor unknown": (
        edit_header(lambda h: h.update(extra=dict(h[NORM], shape=[0], data_offsets=[0, 0]))),
        "not part of Qwen3ForCausalLM",
    ),
    "tensor misshaped": (edit_entry(NORM, shape=[4, 8]), r"has shape \[4, 8\]"),
    "index a list": (index([1]), "weight_map is missing"),
    "index empty": (index({}), "weight_map is missing"),
    "index escapes": (index({"a": "../a.safetensors"}), "not a shard's file name"),
    "index absolute": (index({"a": "/etc/a.safetensors"}), "not a shard's file name"),
    "index backslash": (index({"a": "..\\a.safetensors"}), "not a shard's file name"),
    "index other file": (index({"a": "config.json"}), "not a shard's file name"),
    "index a number": (index({"a": 1}), "not a string"),
    "shard missing": (index({"a": "b.safetensors"}), "cannot be read"),
    "shard without the tensor": (index({"a": "a.safetensors"}), "is not in"),
    "tensor in two shards": (two_shards_alike, "in two shards"),
}  # fmt: skip

CONFIGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "cannot be read"),
    "config cut": (lambda d: os.truncate(d / "config.json", 30), "not JSON"),
    "config a directory": (
        lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()),
        "cannot be read",
    ),
    "config huge": (
        lambda d: (d / "config.json").write_bytes(b" " * ((16 << 20) + 1)),
        "larger than",
    ),
    "config too deep": (lambda d: (d / "config.json").write_bytes(DEEP), "not JSON"),
    "vocabulary absurd": (edit_config(vocab_size=1 << 40), "vocab_size is 1099511627776"),
    "layers absurd": (edit_config(num_hidden_layers=10**9), "num_hidden_layers"),
    "layers none": (edit_config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "hidden a string": (edit_config(hidden_size="32"), "must be an integer"),
    "hidden a bool": (edit_config(hidden_size=True), "must be an integer"),
    "hidden missing": (edit_config(hidden_size=None), "hidden_size is missing"),
    "inner infinite": (edit_config(intermediate_size=1e400), "must be an integer"),
    "heads do not divide": (edit_config(num_key_value_heads=3), "must divide 4 heads"),
    "head odd": (edit_config(head_dim=15), "must be even"),
    "eps not a number": (edit_config(rms_norm_eps="small"), "must be a number"),
    "eps nan": (edit_config(rms_norm_eps=float("nan")), "rms_norm_eps"),
    "theta nought": (edit_config(rope_theta=0), "rope_theta is 0"),
    "tied a string": (edit_config(tie_word_embeddings="no"), "true or false"),
    "context absurd": (edit_config(max_position_embeddings=1 << 50), "max_position"),
    "rope a list": (edit_config(rope_scaling=[1]), "must be an object"),
    "rope factor nought": (
        edit_config(rope_scaling={"rope_type": "linear", "factor": 0}),
        "factor",
    ),
    "rope llama3 crossed": (
        edit_config(
            rope_scaling={
                "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
            }
        ),
        "above low_freq_factor",
    ),
    "layer types too few": (edit_config(layer_types=["full_attention"]), "2 entries"),
    "architectures a string": (edit_config(architectures="Qwen3"), "list of strings"),
    "shapes of another model": (edit_config(hidden_size=64), "has shape"),
}  # fmt: skip

UNSUPPORTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "nothing said": (edit_config(architectures=[], model_type=""), "not supported; known"),
    "quantised": (edit_config(quantization_config={"bits": 4}), "quantised"),
    "activation": (edit_config(hidden_act="gelu"), "'gelu'"),
    "rope type": (edit_config(rope_scaling={"rope_type": "dynamic"}), "'dynamic'"),
    "partial rotary": (edit_config(partial_rotary_factor=0.5), "a part of each head"),
    "layer type": (
        edit_config(layer_types=["full_attention", "linear_attention"]),
        "linear_attention",
    ),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("case", [*FILES, *CONFIGS])
def test_a_bad_checkpoint_is_told_apart_and_told(directory: Path, case: str):
    damage, message = {**FILES, **CONFIGS}[case]
    damage(directory)
    error = UnsupportedModel if case == "integer weights" else CheckpointError
    for use in (lambda: open_engine(directory, device="cpu"), lambda: estimate_of(directory)):
        with pytest.raises(error, match=message) as caught:
            use()
        assert len(caught.value.message) < 400
        assert str(directory) not in caught.value.message


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_says_what_is(directory: Path, case: str):
    damage, message = UNSUPPORTED[case]
    damage(directory)
    with pytest.raises(UnsupportedModel, match=message):
        read_config(directory)


def test_after_all_of_them_the_process_serves_and_holds_no_file(directory: Path, tmp_path: Path):
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir())) if open_files.exists() else 0
    for number, (damage, _) in enumerate(FILES.values()):
        bad = write_checkpoint(tmp_path / str(number))
        damage(bad)
        with pytest.raises((CheckpointError, UnsupportedModel)):
            open_engine(bad, device="cpu")
    if before:
        assert len(list(open_files.iterdir())) == before
    engine = open_engine(directory, device="cpu")
    engine.add(ask("r", [1, 2, 3], max_tokens=3))
    assert len(drain(engine)["r"]) == 3
    engine.close()


def test_a_file_truncated_while_it_is_read_is_an_error_and_no_signal(directory: Path):
    with SafetensorsFile(directory / MODEL) as file:
        entry = max(file.entries.values(), key=lambda e: e.begin)
        os.truncate(directory / MODEL, entry.begin)
        target = torch.empty(entry.shape)
        with pytest.raises(CheckpointError, match="truncated while"):
            file.read_into(entry, target, lambda read: None)


def test_a_random_byte_anywhere_never_ends_the_process(directory: Path):
    """Flipping bytes of the header: an engine, or one of our errors; nothing else."""
    original = (directory / MODEL).read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    generator = torch.Generator().manual_seed(0)
    spots = torch.randint(0, 8 + length, (300,), generator=generator).tolist()
    values = torch.randint(0, 256, (300,), generator=generator).tolist()
    refused = 0
    for spot, value in zip(spots, values, strict=True):
        damaged = bytearray(original)
        damaged[spot] = value
        (directory / MODEL).write_bytes(damaged)
        try:
            estimate_of(directory)
        except (CheckpointError, UnsupportedModel):
            refused += 1
    assert refused > 250


def estimate_of(directory: Path) -> object:
    return estimate(directory, dtype=None, context=None, free_bytes=1 << 30)
