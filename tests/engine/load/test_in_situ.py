"""Checkpoints quantised while they are loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoints import tensors_of, write_checkpoint
from fakes.logits import distance, logits_of
from fakes.requests import ask, drain
from safetensors.torch import load_file, save_file

from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.load import in_situ, prepare
from cortex.engine.load.checkpoint import estimate, open_engine
from cortex.engine.load.tensors import Tensors
from cortex.engine.models.decoder import Decoder
from cortex.engine.quant import quantize as quantize_module
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.quantize import quantize
from cortex.engine.quant.recipes import RECIPES, find_recipe
from cortex.engine.quant.types import Q4_K, Q6_K, Q8_0
from cortex.errors import CheckpointError, LoadCancelled, UnsupportedLoad

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
ON_CPU = [name for name in RECIPES if name != "fp8"]


def write_rounded(directory: Path, quant: str) -> Path:
    """The dense checkpoint of what *quant* makes of the one in *directory*: weights there and
    back, one by one."""
    tensors = load_file(directory / "model.safetensors")
    storage = find_recipe(quant).storage(2)
    for name, weight in tensors.items():
        kind = storage(name, tuple(weight.shape)) if weight.dim() == 2 else None
        if kind is not None:
            tensors[name] = dequantize(quantize(weight, kind), kind, torch.float32)
    rounded = directory.with_name(directory.name + "-" + quant)
    rounded.mkdir()
    (rounded / "config.json").write_text((directory / "config.json").read_text())
    save_file(tensors, rounded / "model.safetensors")
    return rounded


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", ON_CPU)
def test_logits_are_those_of_the_rounded_weights(tmp_path: Path, quant: str, tied: bool):
    directory = write_checkpoint(tmp_path / "a", **WIDE, tie_word_embeddings=tied)
    ours = logits_of(directory, quant=quant.upper())
    assert distance(ours, logits_of(write_rounded(directory, quant))) < 1e-4
    plain = distance(ours, logits_of(directory))
    assert 1e-3 < plain < {"q8_0": 0.04, "q6_k": 0.12}.get(quant, 0.6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quant", ["q8_0", "q4_k_m", None])
def test_the_estimate_is_what_is_then_allocated(
    tmp_path: Path, tied: bool, dtype: str, quant: str | None
):
    directory = write_checkpoint(tmp_path, **WIDE, tie_word_embeddings=tied)
    told = estimate(directory, dtype=dtype, quant=quant, context=64, free_bytes=1 << 32)
    engine = open_engine(directory, device="cpu", dtype=dtype, quant=quant, context=64)
    assert told.rows["weights"] == engine.weight_bytes
    assert told.quant == {"q8_0": "q8_0", "q4_k_m": "q4_k", None: None}[quant]
    assert told.parameters == sum(t.numel() for t in tensors_of(directory).values())
    engine.close()


def test_bytes_are_those_of_each_weights_format(tmp_path: Path):
    """Of two layers the second is refined."""
    directory = write_checkpoint(tmp_path, **WIDE)
    with Tensors(directory) as tensors:
        source = prepare.prepared(tensors, torch.float32, "q4_k_m", CPU)
        model = Decoder(source.config, torch.float32, CPU, TorchOps(CPU), source.storage)
    tables = 2 * 97 * Q6_K.row_bytes(256)
    alike = 2 * (256 + 128 + 256 + 1024) * Q4_K.row_bytes(256)  # q, k, o, gate and up
    plain = 128 * Q4_K.row_bytes(256) + 256 * Q4_K.row_bytes(512)  # v and down
    refined = 128 * Q6_K.row_bytes(256) + 256 * Q6_K.row_bytes(512)
    norms = 4 * (5 * 256 + 4 * 64)
    assert model.bytes == tables + alike + plain + refined + norms


def test_rows_that_are_no_whole_blocks_fall_back(tmp_path: Path):
    """Inputs of 48 stay dense, those of 32 and 64 become Q8_0."""
    directory = write_checkpoint(tmp_path / "a", intermediate_size=48)
    with Tensors(directory) as tensors:
        source = prepare.prepared(tensors, torch.float32, "q4_k", CPU)
        layer = "model.layers.0."
        assert source.find(layer + "mlp.down_proj.weight").quant is None
        assert source.find(layer + "self_attn.o_proj.weight").quant == Q8_0
        assert source.find(layer + "mlp.up_proj.weight").quant == Q8_0
        assert source.find("lm_head.weight").quant == Q8_0
        assert source.find("model.norm.weight").quant is None
        for name in source.names:
            shape = source.find(name).shape
            assert len(shape) == 1 or source.storage(name, shape) == source.find(name).quant
    ours = logits_of(directory, quant="q4_k")
    assert distance(ours, logits_of(write_rounded(directory, "q4_k_m"))) < 1e-4


def test_slices_and_threads_do_not_change_it(tmp_path: Path, monkeypatch):
    directory = write_checkpoint(tmp_path, **WIDE)
    whole = logits_of(directory, quant="q4_k")
    monkeypatch.setattr(in_situ, "SLICE", 128 * 256)
    monkeypatch.setattr(quantize_module, "CPU_CHUNK", 4096)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(logits_of(directory, quant="q4_k"), whole)


def test_a_load_is_cancelled_between_slices(tmp_path: Path, monkeypatch):
    directory = write_checkpoint(tmp_path, **WIDE)
    monkeypatch.setattr(in_situ, "SLICE", 128 * 256)
    polls = 0

    def count() -> bool:
        nonlocal polls
        polls += 1
        return False

    open_engine(directory, device="cpu", quant="q8_0", context=32, cancelled=count).close()
    inputs = load_file(directory / "model.safetensors")
    slices = sum(len(tensor) // 128 for tensor in inputs.values() if tensor.dim() == 2)
    assert polls > slices
    for at in range(0, polls, 17):
        left = iter([False] * at + [True] * 1000)
        with pytest.raises(LoadCancelled):
            open_engine(
                directory, device="cpu", quant="q8_0", cancelled=lambda left=left: next(left)
            )


def test_weights_that_are_not_finite_are_a_bad_checkpoint(tmp_path: Path):
    directory = write_checkpoint(tmp_path, **WIDE)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"layers.1.mlp.up_proj.weight' cannot be q4_k: .*fin"
    ):
        open_engine(directory, device="cpu", quant="q4_k")


@pytest.mark.parametrize(
    "call", [partial(estimate, free_bytes=1 << 30), partial(open_engine, device="cpu")]
)
@pytest.mark.parametrize(
    ("quant", "message"),
    [("q4_k_x", "known: q8_0"), ("fp8", "compute capability 8.9 or above; cpu is none")],
)
def test_what_cannot_be_is_refused(tmp_path: Path, call: Any, quant: str, message: str):
    directory = write_checkpoint(tmp_path, **WIDE)
    with pytest.raises(UnsupportedLoad, match=message) as caught:
        call(directory, quant=quant)
    assert caught.value.param == "quant"


def test_fp8_where_the_device_has_it(tmp_path: Path, monkeypatch):
    """The plain operations multiply by FP8 everywhere, so that all but the kernel shows on a CPU.
    Rows of 192 (queries) and 64 stay dense; embedding and head do too."""
    monkeypatch.setattr(prepare, "has_fp8", lambda device: True)
    directory = write_checkpoint(tmp_path / "a", **{**WIDE, "num_attention_heads": 3,
                                                    "num_key_value_heads": 1})  # fmt: skip
    told = estimate(directory, dtype="float32", quant="fp8", context=64, free_bytes=1 << 32)
    engine = open_engine(directory, device="cpu", dtype="float32", quant="fp8", context=64)
    assert told.rows["weights"] == engine.weight_bytes
    assert told.quant == "fp8"
    engine.add(ask("r", [1, 2], max_tokens=2))
    assert len(drain(engine)["r"]) == 2
    engine.close()
    ours = logits_of(directory, quant="fp8")
    assert distance(ours, logits_of(write_rounded(directory, "fp8"))) < 1e-4
    assert 1e-3 < distance(ours, logits_of(directory)) < 0.2
