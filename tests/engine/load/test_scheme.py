"""What a config.json says of how its weights are quantised."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.engine.load.scheme import Fp8Scheme, Int4Scheme, read_scheme
from cortex.engine.models.fields import Fields
from cortex.errors import CheckpointError, UnsupportedModel

FLOAT8 = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}


def scheme(section: str = "quantization_config", **members: Any) -> Any:
    return read_scheme(Fields({section: members}))


def compressed(**changes: Any) -> dict[str, Any]:
    members = {"format": "float-quantized", "config_groups": {"group_0": FLOAT8}, **changes}
    return {"quant_method": "compressed-tensors", **members}


def test_nothing_is_nothing():
    assert read_scheme(Fields({})) is None
    assert read_scheme(Fields({"quantization_config": None})) is None


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"quant_method": "awq"}, Int4Scheme("awq", 128)),
        ({"quant_method": "AWQ", "version": "GEMM", "group_size": -1}, Int4Scheme("awq", None)),
        ({"quant_method": "awq", "zero_point": False}, Int4Scheme("awq", 128, symmetric=True)),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, Int4Scheme("gptq", 64, 1)),
        (
            {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "desc_act": True,
             "dynamic": {"-:lm_head": {}}},
            Int4Scheme("gptq", 128, 0, act_order=True),
        ),
        ({"quant_method": "fp8"}, Fp8Scheme("fp8")),
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, Fp8Scheme("fp8", (128, 64))),
        (compressed(), Fp8Scheme("compressed-tensors")),
    ],
)  # fmt: skip
def test_what_is_supported(members: dict[str, Any], expected: object):
    assert scheme(**members) == expected
    assert scheme("compression_config", **members) == expected


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "aqlm"}, "'aqlm'"),
        ({"bits": 4}, "'no stated method'"),
        ({"quant_method": "x" * 500}, "'xxxx"),
        ({"quant_method": "awq", "bits": 8}, "awq checkpoints of 8 bits"),
        ({"quant_method": "gptq", "bits": 3}, "gptq checkpoints of 3 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "in the layout 'gemv'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "in the layout 'marlin'"),
        ({"quant_method": "gptq", "dynamic": {"+:.*down.*": {"bits": 8}}}, "some of the modules"),
        (compressed(format="pack-quantized"), "in the format 'pack-quantized'"),
        (
            compressed(config_groups={"a": {"weights": {"type": "int", "num_bits": 8}}}),
            "with int weights of 8 bits",
        ),
        (compressed(config_groups={}), "with 0 kinds"),
    ],
)
def test_what_is_not_supported_names_what_is(members: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message) as caught:
        scheme(**members)
    assert "known: awq (gemm), gptq (4 bits), fp8" in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"quant_method": "awq", "group_size": 0}, "group_size is 0"),
        ({"quant_method": "awq", "group_size": -2}, "group_size is -2"),
        ({"quant_method": "awq", "group_size": 1 << 40}, "group_size"),
        ({"quant_method": "awq", "group_size": "128"}, "must be an integer"),
        ({"quant_method": "awq", "bits": True}, "must be an integer"),
        ({"quant_method": 4}, "must be a string"),
        ({"quant_method": "gptq", "desc_act": "no"}, "true or false"),
        ({"quant_method": "gptq", "dynamic": [1]}, "must be an object"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "list of integers"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "must have 2"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "between 1 and"),
        ({"quant_method": "fp8", "weight_block_size": [128, "128"]}, "must be an integer"),
        (compressed(config_groups=[1]), "must be an object"),
        (compressed(config_groups={"a": 1}), "must be an object"),
        (compressed(config_groups={"a": {}}), "has no weights"),
        (compressed(config_groups={"a": {"weights": {"type": "float"}}}), "num_bits is missing"),
    ],
)
def test_bad_values_are_told(members: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        scheme(**members)


def test_a_section_that_is_no_object_is_told():
    with pytest.raises(CheckpointError, match="quantization_config is"):
        read_scheme(Fields({"quantization_config": [1]}))
