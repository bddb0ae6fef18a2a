"""FP8 checkpoints against dense ones of the weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.logits import distance, logits_of
from fakes.quantized_checkpoints import write_quantized
from safetensors.torch import load_file, save_file

from cortex.engine.load import fp8_source, prepare
from cortex.engine.load.checkpoint import estimate, open_engine
from cortex.errors import CheckpointError, UnsupportedModel

BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
PLAIN = {"quant_method": "fp8", "activation_scheme": "static"}
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
UP = "model.layers.0.mlp.up_proj"
Parts = dict[str, torch.Tensor]


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    kind = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, **weights}
    group = {"targets": ["Linear"], "weights": kind, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def packer(
    cell: tuple[int, int] | None,
    name: str,
    shape: Callable[[int, int], tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    weights: torch.dtype = torch.float8_e4m3fn,
) -> Callable[[str, tuple[int, int]], tuple[Parts, torch.Tensor]]:
    """Every projection in FP8 with a scale for each *cell* (None: for all), stored as *name* in
    what *shape* makes of the numbers of cells."""
    generator = torch.Generator().manual_seed(7)

    def pack(module: str, size: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
        rows, inputs = size
        high, wide = cell or size
        high = high or rows
        wide = wide or inputs
        values = torch.randn(rows, inputs, generator=generator).mul(10).to(weights)
        grid = -(-rows // high), -(-inputs // wide)
        scales = (torch.rand(grid, generator=generator) + 0.5).mul(0.15 / inputs**0.5).to(dtype)
        dense = values.float()
        for row in range(rows):
            for column in range(0, inputs, wide):
                dense[row, column : column + wide] *= scales[row // high, column // wide].float()
        return {"weight": values, name: scales.view(shape(*grid))}, dense

    return pack


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "blocks": (BLOCKS, packer((128, 128), "weight_scale_inv", lambda *grid: grid)),
    "blocks in bf16": (
        BLOCKS,
        packer((128, 128), "weight_scale_inv", lambda *grid: grid, torch.bfloat16),
    ),
    "small blocks": (
        {**BLOCKS, "weight_block_size": [48, 80]},
        packer((48, 80), "weight_scale_inv", lambda *grid: grid),
    ),
    "one": (PLAIN, packer(None, "weight_scale", lambda *grid: ())),
    "one in a list": (PLAIN, packer(None, "weight_scale", lambda *grid: (1,))),
    "one though blocks": (BLOCKS, packer(None, "weight_scale_inv", lambda *grid: ())),
    "e5m2": (
        PLAIN,
        packer(None, "weight_scale", lambda *grid: (), weights=torch.float8_e5m2),
    ),
    "rows": (
        compressed("channel"),
        packer((1, 0), "weight_scale", lambda *grid: grid, torch.bfloat16),
    ),
    "rows in a list": (
        compressed("channel"),
        packer((1, 0), "weight_scale", lambda *grid: grid[:1]),
    ),
    "compressed, one": (compressed("tensor"), packer(None, "weight_scale", lambda *grid: (1,))),
    "compressed, blocks": (
        compressed("block", block_structure=[128, 128]),
        packer((128, 128), "weight_scale", lambda *grid: grid),
    ),
}  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_weights(tmp_path: Path, case: str, keep: bool, monkeypatch):
    """Where the device has FP8 too: the plain operations multiply by it on a CPU."""
    monkeypatch.setattr(prepare, "has_fp8", lambda device: keep)
    monkeypatch.setattr(fp8_source, "SLICE", 20_000)
    config, pack = CASES[case]
    packed, dense = write_quantized(tmp_path, config, pack, **WIDE)
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4
    kept = keep and case not in ("small blocks", "e5m2", "rows", "rows in a list")
    told = estimate(packed, dtype="float32", free_bytes=1 << 30)
    full = estimate(dense, dtype="float32", free_bytes=1 << 30)
    assert told.parameters == full.parameters
    assert (told.rows["weights"] < full.rows["weights"]) is kept
    if not kept:
        assert told.rows == full.rows
        assert told.quant is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_loaded_is_what_was_estimated(tmp_path: Path, dtype: str, keep: bool, monkeypatch):
    monkeypatch.setattr(prepare, "has_fp8", lambda device: keep)
    packed, _ = write_quantized(tmp_path, *CASES["blocks"], **WIDE)
    told = estimate(packed, dtype=dtype, context=64, free_bytes=1 << 30)
    heard: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "weights":
            heard.append((done, total))

    engine = open_engine(packed, device="cpu", dtype=dtype, context=64, progress=progress)
    assert told.rows["weights"] == engine.weight_bytes
    size = sum(t.nbytes for t in load_file(packed / "model.safetensors").values())
    assert heard[-1] == (size, size)
    engine.close()


def test_scales_of_activations_and_of_a_cache_are_passed_over(tmp_path: Path):
    packed, dense = write_quantized(tmp_path, *CASES["one"], **WIDE)
    tensors = load_file(packed / "model.safetensors")
    one = torch.ones(())
    tensors |= {f"{UP}.input_scale": one.clone(), "model.layers.0.self_attn.k_scale": one.clone()}
    tensors["model.layers.0.self_attn.k_proj.output_scale"] = one.clone()
    save_file(tensors, packed / "model.safetensors")
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4


@pytest.mark.parametrize("keep", [False, True])
def test_it_can_be_quantised_further(tmp_path: Path, keep: bool, monkeypatch):
    monkeypatch.setattr(prepare, "has_fp8", lambda device: keep)
    packed, dense = write_quantized(tmp_path, *CASES["blocks"], **WIDE)
    assert estimate(packed, quant="q8_0", free_bytes=1 << 30).quant == "q8_0"
    ours, theirs = (logits_of(path, quant="q8_0") for path in (packed, dense))
    assert torch.equal(ours, theirs)
    told = estimate(packed, quant="FP8", free_bytes=1 << 30)
    assert told == estimate(packed, free_bytes=1 << 30)


Damage = Callable[[Parts], object]
SCALE = f"{UP}.weight_scale_inv"
BAD: dict[str, tuple[Damage, str]] = {
    "no scales": (lambda t: t.pop(SCALE), "FP8 and has 0 scales"),
    "two scales": (lambda t: t.update({f"{UP}.weight_scale": torch.ones(())}), "has 2 scales"),
    "scales of another shape": (
        lambda t: t.update({SCALE: torch.ones(2, 3)}),
        r"has shape \[2, 3\], which does not belong to 192 x 256",
    ),
    "scales transposed": (lambda t: t.update({SCALE: torch.ones(4, 1)}), "does not belong"),
    "not finite": (lambda t: t[SCALE].fill_(torch.nan), "is not finite"),
    "no matrix": (
        lambda t: t.update({"model.norm.weight": torch.ones(256).to(torch.float8_e4m3fn),
                            "model.norm.weight_scale": torch.ones(())}),
        "is FP8 and no matrix",
    ),
    "empty": (
        lambda t: t.update({f"{UP}.weight": torch.ones(0, 256).to(torch.float8_e4m3fn)}),
        "no matrix",
    ),
    "of another model": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:130].clone()}),
        r"has shape \[130, 256\]; the config asks for \[192, 256\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_weight_is_told(tmp_path: Path, case: str):
    damage, message = BAD[case]
    packed, _ = write_quantized(tmp_path, *CASES["blocks"], **WIDE)
    tensors = load_file(packed / "model.safetensors")
    damage(tensors)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_engine(packed, device="cpu", context=32)
    if case != "not finite":
        with pytest.raises(CheckpointError, match=message):
            estimate(packed, free_bytes=1 << 30)


def test_scales_that_are_powers_of_two_are_not_supported(tmp_path: Path):
    packed, _ = write_quantized(tmp_path, *CASES["blocks"], **WIDE)
    tensors = load_file(packed / "model.safetensors")
    tensors[SCALE] = torch.ones(2, 2).to(torch.float8_e8m0fnu)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="is F8_E8M0, not a float"):
        estimate(packed, free_bytes=1 << 30)


def test_fp8_weights_in_a_checkpoint_that_does_not_say_so_are_not_supported(tmp_path: Path):
    packed, dense = write_quantized(tmp_path, *CASES["blocks"], **WIDE)
    (packed / "config.json").write_text((dense / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="is F8_E4M3, not a float"):
        estimate(packed, free_bytes=1 << 30)
