"""AWQ and GPTQ checkpoints against dense ones of the weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.logits import distance, logits_of
from fakes.quantized_checkpoints import Int4, random_int4, write_quantized
from safetensors.torch import load_file, save_file

from cortex.engine.load.checkpoint import estimate, open_engine
from cortex.engine.load.int4 import Int4Weight
from cortex.engine.load.int4_source import Int4Source
from cortex.engine.load.scheme import Int4Scheme
from cortex.engine.load.tensors import Tensors
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import Q4_1, Q8_0
from cortex.errors import CheckpointError, UnsupportedLoad

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
UP = "model.layers.0.mlp.up_proj"
Parts = dict[str, torch.Tensor]


def packer(
    store: Callable[[Int4], Parts], group: int, *, shuffled: bool = False
) -> Callable[[str, tuple[int, int]], tuple[Parts, torch.Tensor]]:
    """Every projection with random weights in groups of *group*, or one group where that is -1."""
    generator = torch.Generator().manual_seed(5)

    def pack(module: str, shape: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
        rows, inputs = shape
        size = inputs if group == -1 else group
        weight = random_int4(rows, inputs, size, generator, shuffled=shuffled)
        return store(weight), weight.dense()

    return pack


def awq_of(directory: Path, group: int = 32, **changes: Any) -> tuple[Path, Path]:
    config = {**AWQ, "group_size": group}
    return write_quantized(directory, config, packer(Int4.awq, group), **changes)


def gptq_of(directory: Path, **changes: Any) -> tuple[Path, Path]:
    return write_quantized(directory, {**GPTQ, **changes}, packer(Int4.gptq, 32))


@pytest.mark.parametrize("group", [32, 64, -1])
def test_awq_logits_are_those_of_the_weights(tmp_path: Path, group: int):
    packed, dense = awq_of(tmp_path, group, tie_word_embeddings=group == 64)
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4
    assert estimate(packed, free_bytes=1 << 30).quant == "q4_1"


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", None])
def test_gptq_logits_are_those_of_the_weights(tmp_path: Path, group: int, layout: str | None):
    offset = 0 if layout == "gptq_v2" else 1
    config = {**GPTQ, "group_size": group, "checkpoint_format": layout}
    pack = packer(lambda weight: weight.gptq(offset), group)
    packed, dense = write_quantized(tmp_path, config, pack)
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4


def test_biases_are_read_beside_packed_weights_and_zeros_beside_none_are_passed_over(
    tmp_path: Path,
):
    """GPTQ's tools write zeros where a layer has no bias; Qwen2 has some for q, k and v."""
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    packed, dense = write_quantized(tmp_path, GPTQ, packer(Int4.gptq, 32), **qwen2)
    tensors = load_file(packed / "model.safetensors")
    tensors[f"{UP}.bias"] = torch.zeros(128, dtype=torch.float16)
    save_file(tensors, packed / "model.safetensors")
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4
    tensors[f"{UP}.bias"][7] = 1
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not part of Qwen2.*up_proj.bias"):
        estimate(packed, free_bytes=1 << 30)


@pytest.mark.parametrize("shuffled", [False, True])
def test_inputs_in_any_order_are_rounded_to_q8_0(tmp_path: Path, shuffled: bool):
    config = {**GPTQ, "desc_act": True}
    packed, dense = write_quantized(tmp_path, config, packer(Int4.gptq, 32, shuffled=shuffled))
    assert estimate(packed, free_bytes=1 << 30).quant == "q8_0"
    assert 0 < distance(logits_of(packed), logits_of(dense)) < 0.04
    with Tensors(packed) as tensors:
        source = Int4Source(tensors, Int4Scheme("gptq", 32, 1, act_order=True))
        rows = torch.empty(128, Q8_0.row_bytes(64), dtype=torch.uint8)
        source.read(f"{UP}.weight", rows, lambda read: None)
    wanted = load_file(dense / "model.safetensors")[f"{UP}.weight"]
    assert distance(dequantize(rows, Q8_0, torch.float32), wanted) < 0.006


def test_groups_of_a_part_of_a_block_are_rounded_to_q8_0(tmp_path: Path):
    packed, dense = awq_of(tmp_path, 16)
    assert estimate(packed, free_bytes=1 << 30).quant == "q8_0"
    assert 0 < distance(logits_of(packed), logits_of(dense)) < 0.04


def test_inputs_that_are_no_whole_blocks_are_unpacked(tmp_path: Path):
    """Down projections of 176 inputs."""
    packed, dense = awq_of(tmp_path, 16, intermediate_size=176)
    with Tensors(packed) as tensors:
        source = Int4Source(tensors, Int4Scheme("awq", 16))
        assert source.find("model.layers.1.mlp.down_proj.weight").quant is None
        assert source.find("model.layers.1.mlp.up_proj.weight").quant == Q8_0
    assert distance(logits_of(packed), logits_of(dense)) < 0.04


def test_zero_points_in_the_middle_need_not_be_stored(tmp_path: Path):
    generator = torch.Generator().manual_seed(5)

    def pack(module: str, shape: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
        weight = random_int4(*shape, 32, generator)
        weight.zeros = torch.full_like(weight.zeros, 8)
        parts = weight.awq()
        del parts["qzeros"]
        return parts, weight.dense()

    packed, dense = write_quantized(tmp_path, {**AWQ, "zero_point": False}, pack)
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4


def test_projections_that_are_not_quantised_are_read_as_they_are(tmp_path: Path):
    generator = torch.Generator().manual_seed(5)

    def pack(module: str, shape: tuple[int, int]) -> tuple[Parts, torch.Tensor]:
        weight = random_int4(*shape, 32, generator)
        plain = "o_proj" in module or "layers.1.self_attn.v" in module
        return ({"weight": weight.dense()} if plain else weight.awq()), weight.dense()

    config = {**AWQ, "modules_to_not_convert": ["o_proj", "layers.1.self_attn.v"]}
    packed, dense = write_quantized(tmp_path, config, pack)
    assert distance(logits_of(packed), logits_of(dense)) < 1e-4


def test_what_is_loaded_is_what_was_estimated(tmp_path: Path):
    packed, dense = awq_of(tmp_path)
    told = estimate(packed, dtype="float32", context=64, free_bytes=1 << 30)
    heard: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "weights":
            heard.append((done, total))

    engine = open_engine(packed, device="cpu", dtype="float32", context=64, progress=progress)
    assert told.rows["weights"] == engine.weight_bytes
    assert told.parameters == estimate(dense, free_bytes=1 << 30).parameters
    size = sum(t.nbytes for t in load_file(packed / "model.safetensors").values())
    assert heard[-1] == (size, size)
    engine.close()


@pytest.mark.parametrize("quant", ["awq", "AWQ", None])
def test_its_own_name_may_be_asked_for(tmp_path: Path, quant: str | None):
    packed, _ = awq_of(tmp_path)
    assert estimate(packed, quant=quant, free_bytes=1 << 30).quant == "q4_1"
    with pytest.raises(UnsupportedLoad, match="quantised already, by awq"):
        estimate(packed, quant="q8_0", free_bytes=1 << 30)


def test_rounding_of_the_minimum_is_within_bounds():
    """At most 2^-11 of the group's 15 steps beside the scale, which is fp16 already."""
    generator = torch.Generator().manual_seed(6)
    scales = (torch.rand(4, 64, generator=generator) * 0.1 + 1e-3).half()
    zeros = torch.randint(0, 16, (4, 64), generator=generator)
    q = torch.randint(0, 16, (128, 64), generator=generator)
    weight = Int4(q, zeros, scales, torch.arange(128) // 32)
    ours = Int4Weight(q.byte(), zeros.byte(), scales.float(), weight.groups)
    assert torch.equal(ours.dense(), weight.dense())
    values = dequantize(ours.packed(), Q4_1, torch.float32)
    spans = 15 * scales.float()[weight.groups].t()
    errors = (values - weight.dense()).abs() / spans
    assert 0 < float(errors.max()) < 2.0**-11


Damage = Callable[[Parts], object]
BAD: dict[str, tuple[Damage, str]] = {
    "no scales": (lambda t: t.pop(f"{UP}.scales"), "up_proj.scales' is missing"),
    "no zeros": (lambda t: t.pop(f"{UP}.qzeros"), "up_proj.qzeros' is missing"),
    "both": (lambda t: t.update({f"{UP}.weight": torch.zeros(128, 64)}), "a plain weight and"),
    "flat": (lambda t: t.update({f"{UP}.qweight": torch.zeros(8, dtype=torch.int32)}), "two dim"),
    "transposed": (
        lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"].t().contiguous()}),
        "does not",
    ),
    "empty": (
        lambda t: t.update({f"{UP}.qweight": torch.zeros(0, 16, dtype=torch.int32)}),
        "does not fit groups",
    ),
    "floats": (
        lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"].float()}),
        "is F32, not I32",
    ),
    "integer scales": (
        lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].int()}),
        "is I32, not a float",
    ),
    "scales of another shape": (
        lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"][:, :-8].contiguous()}),
        "does not belong to 128 x 64 weights",
    ),
    "another width": (
        lambda t: [
            t.update({f"{UP}.{part}": t[f"{UP}.{part}"][:, :8].contiguous()})
            for part in ("qweight", "qzeros")
        ]
        + [t.update({f"{UP}.scales": t[f"{UP}.scales"][:, :64].contiguous()})],
        r"has shape \[64, 64\]; the config asks for \[128, 64\]",
    ),
    "infinite scales": (
        lambda t: t[f"{UP}.scales"].fill_(torch.inf),
        "up_proj.weight': weights are not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_weight_is_told(tmp_path: Path, case: str):
    damage, message = BAD[case]
    packed, _ = awq_of(tmp_path)
    tensors = load_file(packed / "model.safetensors")
    damage(tensors)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_engine(packed, device="cpu", context=32)
    if case != "infinite scales":
        with pytest.raises(CheckpointError, match=message):
            estimate(packed, free_bytes=1 << 30)


@pytest.mark.parametrize(
    ("act_order", "groups", "message"),
    [
        (False, [0, 1] * 32, "no neighbours"),
        (True, [0] * 63 + [4], "a group that is not there"),
        (True, [0] * 63 + [-1], "a group that is not there"),
    ],
)
def test_bad_groups_are_told(tmp_path: Path, act_order: bool, groups: list[int], message: str):
    packed, _ = gptq_of(tmp_path, desc_act=act_order)
    tensors = load_file(packed / "model.safetensors")
    tensors[f"{UP}.g_idx"] = torch.tensor(groups, dtype=torch.int32)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_engine(packed, device="cpu", context=32)
