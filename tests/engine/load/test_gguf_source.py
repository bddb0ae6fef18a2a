"""GGUF files as a source of weights: what is in them, in how many parts, and what is wrong."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from fakes.gguf_models import Weights, config_of, plain, weights_of, write_gguf
from fakes.gguf_tokenizers import put
from fakes.requests import ask, drain, tokens_of
from safetensors.torch import save_file

from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.load import checkpoint
from cortex.engine.load.checkpoint import estimate, open_engine, read_config
from cortex.engine.load.gguf_source import GgufSource
from cortex.engine.load.source import Source
from cortex.engine.load.tensors import Tensors
from cortex.engine.quant.types import Q4_0, Q8_0, QuantType
from cortex.errors import CheckpointError, LoadCancelled, UnsupportedLoad, UnsupportedModel

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def some(name: str) -> QuantType | None:
    return Q8_0 if "q_proj" in name else None if "down_proj" in name else Q4_0


def tiny(model_type: str = "llama", **changes: Any) -> tuple[dict[str, Any], Weights]:
    config = config_of(model_type, **{**TINY, **changes})
    return config, weights_of(config, some)


def estimate_of(path: Path, **options: Any) -> Any:
    return estimate(path, dtype="float32", free_bytes=1 << 30, **options)


def test_a_source_gives_what_a_directory_of_safetensors_gives(tmp_path: Path):
    import json

    config, weights = tiny(tie_word_embeddings=True)
    path = write_gguf(tmp_path / "a.gguf", config, weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(plain(weights), tmp_path / "model.safetensors")

    def dense_of(source: Source, name: str) -> torch.Tensor:
        from cortex.engine.quant.dequantize import dequantize

        entry = source.find(name)
        if entry.quant is None:
            values = torch.empty(entry.shape)
            source.read(name, values, lambda read: None)
            return values
        rows, inputs = entry.shape
        packed = torch.empty(rows, entry.quant.row_bytes(inputs), dtype=torch.uint8)
        source.read(name, packed, lambda read: None)
        return dequantize(packed, entry.quant, torch.float32)

    with GgufSource(path) as ours, Tensors(tmp_path) as theirs:
        assert ours.names == theirs.names
        assert ours.elements == theirs.elements
        for name in theirs.names:
            assert torch.equal(dense_of(ours, name), dense_of(theirs, name)), name
            assert ours.storage(name, (1, 1)) == weights[name][0]
        assert ours.storage("nothing", (1, 1)) is None
        assert ours.config.heads == theirs.config.heads


def test_an_estimate_is_exact_and_needs_no_data(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "choose", TorchOps)  # which keeps weights as the file does
    config, weights = tiny()
    path = write_gguf(tmp_path / "a.gguf", config, weights)
    # Weights that are not packed are computed with in fp32 here, and the file has them in fp32.
    stored = sum(value.nbytes for _, value in weights.values())
    whole = estimate_of(path)
    assert whole.rows["weights"] == stored
    assert whole.parameters == sum(math.prod(value.shape) for value in plain(weights).values())
    engine = open_engine(path, device="cpu", dtype="float32")
    assert engine.weight_bytes == stored
    engine.close()

    with GgufSource(path) as source:
        first = min(entry.begin for entry in map(source.find, source.names))
    size = path.stat().st_size
    os.truncate(path, first)
    os.truncate(path, size)  # a hole, as for estimates before a download
    assert estimate_of(path) == whole


def test_the_factors_of_positions_are_no_parameters(tmp_path: Path):
    config, weights = tiny()
    plain_one = estimate_of(write_gguf(tmp_path / "a.gguf", config, weights))
    extra = {"rope_freqs.weight": torch.ones(16)}
    factored = estimate_of(write_gguf(tmp_path / "b.gguf", config, weights, extra=extra))
    assert factored.parameters == plain_one.parameters
    assert factored.rows["weights"] == plain_one.rows["weights"] + 64


def test_a_load_tells_how_far_it_is_and_stops_when_told(tmp_path: Path):
    config, weights = tiny()
    path = write_gguf(tmp_path / "a.gguf", config, weights)
    heard: list[tuple[str, int, int]] = []
    engine = open_engine(
        path, device="cpu", dtype="float32", progress=lambda *told: heard.append(told)
    )
    engine.close()
    total = sum(value.nbytes for _, value in weights.values())
    told = [(done, of) for stage, done, of in heard if stage == "weights"]
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    with pytest.raises(LoadCancelled):
        open_engine(path, device="cpu", cancelled=lambda: True)


def test_a_packed_norm_is_unpacked_at_load(tmp_path: Path):
    config, weights = tiny("qwen3")
    name = "model.norm.weight"
    packed = torch.full((1, 68), 1, dtype=torch.uint8)
    packed.view(2, 34)[:, :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    weights[name] = Q8_0, packed.view(-1)
    path = write_gguf(tmp_path / "a.gguf", config, weights)
    engine = open_engine(path, device="cpu", dtype="float32")
    norm = engine._runner.model.norm.data
    assert torch.equal(norm, torch.ones(64))
    engine.close()


def parts(tmp_path: Path, per_file: int = 5) -> Path:
    return write_gguf(tmp_path / "m.gguf", *tiny(), per_file=per_file)


def test_any_part_stands_for_the_whole(tmp_path: Path):
    first = parts(tmp_path)
    last = max(tmp_path.glob("*.gguf"))
    assert last != first
    assert estimate_of(last) == estimate_of(first)
    whole = write_gguf(tmp_path / "whole.gguf", *tiny())
    assert estimate_of(first) == estimate_of(whole)
    answers = []
    for path in (first, whole):
        engine = open_engine(path, device="cpu", dtype="float32")
        engine.add(ask("r", [1, 2, 3], max_tokens=5))
        answers.append(tokens_of(drain(engine)["r"]))
        engine.close()
    assert answers[0] == answers[1]


def rewrite(path: Path, **changes: int) -> None:
    """A part again, with other ``split`` numbers and no tensors."""
    metadata = {"split.count": 2, "split.no": 1, "split.tensors.count": 25} | changes
    writer = gguf.GGUFWriter(path, "llama")
    put(writer, metadata)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def name_of(first: Path, number: int) -> Path:
    return first.with_name(first.name.replace("-00001-", f"-{number:05}-"))


SPLITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a part is missing": (lambda first: name_of(first, 2).unlink(), "cannot be read"),
    "a part twice": (lambda f: shutil.copy(f, name_of(f, 2)), "says that it is another part"),
    "a part of another split": (
        lambda f: rewrite(name_of(f, 2), **{"split.count": 9}),
        "says that it is another part",
    ),
    "a tensor in two parts": (
        lambda f: write_gguf(
            name_of(f, 2), *tiny(), metadata={"split.no": 1, "split.count": count_of(f)}
        ),
        "is in two parts",
    ),
    "tensors are missing": (
        lambda f: rewrite(name_of(f, 2), **{"split.count": count_of(f)}),
        "tensors in all parts, but",
    ),
    "a count of nothing": (
        lambda f: rewrite(f, **{"split.count": 0}),
        "split.count is 0",
    ),
    "another name": (lambda first: first.rename(first.parent / "x.gguf"), "not named NAME-00001"),
}


def count_of(first: Path) -> int:
    return len(list(first.parent.glob("m-*.gguf")))


@pytest.mark.parametrize("case", SPLITS)
def test_parts_that_do_not_fit_are_told(tmp_path: Path, case: str):
    damage, message = SPLITS[case]
    first = parts(tmp_path)
    damage(first)
    path = first if first.exists() else tmp_path / "x.gguf"
    with pytest.raises(CheckpointError, match=message):
        estimate_of(path)


def with_tensor(name: str, value: torch.Tensor) -> Callable[[Path], Path]:
    return lambda path: write_gguf(path, *tiny(), extra={name: value})


def without(name: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        config, weights = tiny()
        del weights[name]
        return write_gguf(path, config, weights)

    return write


def shaped(name: str, *shape: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        config, weights = tiny("qwen3")
        weights[name] = None, torch.zeros(shape)
        return write_gguf(path, config, weights)

    return write


TENSORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one more": (with_tensor("blk.0.attn_sinks", torch.ones(2)), "not part of LlamaForCausalLM"),
    "a layer more": (with_tensor("blk.2.attn_q.weight", torch.ones(64, 64)), "not part of"),
    "one less": (without("model.layers.1.mlp.up_proj.weight"), "up_proj.weight' is missing"),
    "no embedding": (without("model.embed_tokens.weight"), "'token_embd.weight' is missing"),
    "misshapen": (shaped("model.layers.0.self_attn.q_proj.weight", 32, 64), "has shape"),
    "one dimension": (shaped("model.embed_tokens.weight", 64), "has shape|differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_told(tmp_path: Path, case: str):
    write, message = TENSORS[case]
    path = write(tmp_path / "a.gguf")
    for use in (estimate_of, lambda path: open_engine(path, device="cpu")):
        with pytest.raises(CheckpointError, match=message):
            use(path)


def test_factors_that_are_no_factors_are_told_at_load(tmp_path: Path):
    path = write_gguf(tmp_path / "a.gguf", *tiny(), extra={"rope_freqs.weight": torch.zeros(16)})
    with pytest.raises(CheckpointError, match="not positive"):
        open_engine(path, device="cpu")


def test_formats_that_are_not_computed_with_are_named(tmp_path: Path):
    config, weights = tiny("qwen3", hidden_size=256, intermediate_size=256)
    path = tmp_path / "a.gguf"
    octets = torch.zeros(256, 66, dtype=torch.uint8)
    kind = QuantType("iq2_xxs", 16, 256, 66)
    weights["model.layers.0.mlp.up_proj.weight"] = kind, octets
    with pytest.raises(UnsupportedModel, match=r"up_proj.weight' is IQ2_XXS, not .* Q4_K"):
        estimate_of(write_gguf(path, config, weights))


def test_quantisation_of_a_file_that_has_it_is_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "a.gguf", *tiny())
    with pytest.raises(UnsupportedLoad, match="quantisation at load"):
        estimate_of(path, quant="q8_0")


def test_bad_files_leave_none_open(tmp_path: Path):
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("there is no /proc here")
    before = len(list(open_files.iterdir()))
    for number, (damage, message) in enumerate(SPLITS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        first = parts(folder)
        damage(first)
        with pytest.raises(CheckpointError, match=message):
            estimate_of(first if first.exists() else folder / "x.gguf")
    assert len(list(open_files.iterdir())) == before
    assert read_config(parts(tmp_path)).architecture == "LlamaForCausalLM"
