"""A model's shape out of GGUF metadata."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.gguf_config import configure
from cortex.engine.load.gguf_names import decoder_name
from cortex.engine.models.config import ModelConfig
from cortex.engine.quant.types import Q4_K
from cortex.errors import CheckpointError, UnsupportedModel


def metadata(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    """Llama 3.2 1B's; names without the architecture, dots as ``__``; None removes one."""
    keys = {
        "block_count": 16,
        "context_length": 131072,
        "embedding_length": 2048,
        "feed_forward_length": 8192,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "rope.freq_base": 500000.0,
        "rope.dimension_count": 64,
    }
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    named = {f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    return {"general.architecture": arch, **named}


def entries(*more: str, dtype: str = "Q4_K") -> dict[str, TensorEntry]:
    quant = Q4_K if dtype == "Q4_K" else None
    names = ("model.embed_tokens.weight", *more)
    return {name: TensorEntry(name, dtype, (128256, 2048), 0, 0, quant) for name in names}


def config_of(keys: dict[str, Any], *more: str, dtype: str = "Q4_K") -> ModelConfig:
    return configure(keys, entries(*more, dtype=dtype), "m.gguf")


def test_all_that_metadata_says():
    config = config_of(metadata())
    assert config.architecture == "LlamaForCausalLM"
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (128256, 2048, 8192)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (16, 32, 8, 64)
    assert config.norm_eps == 1e-5
    assert (config.rope.theta, config.rope.kind, config.rope.factored) == (500000, "default", False)
    assert config.trained_context == 131072
    assert config.windows == (None,) * 16
    assert config.tied_embeddings
    assert config.dtype == "bfloat16"
    extras = (config.qk_norm, config.qkv_bias, config.output_bias, config.mlp_bias)
    assert not any(extras)


def test_what_the_tensors_say():
    assert not config_of(metadata(), "lm_head.weight").tied_embeddings
    assert config_of(metadata(), "rope_freqs.weight").rope.factored
    first = "model.layers.0"
    assert config_of(metadata("qwen2"), f"{first}.self_attn.q_proj.bias").qkv_bias
    assert config_of(metadata(), f"{first}.self_attn.o_proj.bias").output_bias
    assert config_of(metadata(), f"{first}.mlp.gate_proj.bias").mlp_bias
    assert config_of(metadata("qwen3")).qk_norm
    assert config_of(metadata(), dtype="F32").dtype == "float32"
    assert config_of(metadata(), dtype="F16").dtype == "bfloat16"


def test_what_may_be_left_out():
    config = config_of(
        metadata(
            attention__head_count_kv=None,
            attention__key_length=None,
            attention__value_length=None,
            rope__freq_base=None,
            rope__dimension_count=None,
        )
    )
    assert (config.heads, config.kv_heads, config.head_dim) == (32, 32, 64)
    assert config.rope.theta == 10000.0


def test_one_number_for_each_layer_where_they_are_alike():
    config = config_of(metadata(attention__head_count_kv=array("i", [8] * 16)))
    assert config.kv_heads == 8
    with pytest.raises(UnsupportedModel, match=r"llama\.attention\.head_count_kv differs"):
        config_of(metadata(attention__head_count_kv=array("i", [8, 4] * 8)))


def test_a_window_is_every_layers():
    assert config_of(metadata(attention__sliding_window=4096)).windows == (4096,) * 16
    assert config_of(metadata(attention__sliding_window=0)).windows == (None,) * 16


def test_scaled_positions():
    yarn = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 32768,
    }
    config = config_of(metadata("qwen3", context_length=32768, **yarn))
    assert (config.rope.kind, config.rope.factor, config.rope.original) == ("yarn", 4.0, 32768)
    assert config.rope.attention_factor is None
    assert config.trained_context == 131072
    scaled = config_of(metadata(rope__scaling__attn_factor=0.5, **yarn))
    assert scaled.rope.attention_factor == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))
    plain = config_of(metadata(rope__scaling__type="linear", rope__scaling__factor=1.0))
    assert plain.rope.kind == "default"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"block_count": None}, r"llama\.block_count is missing"),
    "layers absurd": ({"block_count": 10**9}, "must be between 1 and 2048"),
    "layers a string": ({"block_count": "16"}, "must be an integer"),
    "layers true": ({"block_count": True}, "must be an integer"),
    "hidden absurd": ({"embedding_length": 1 << 40}, "embedding_length"),
    "inner none": ({"feed_forward_length": 0}, "feed_forward_length is 0"),
    "inner nothing": ({"feed_forward_length": None}, "feed_forward_length is missing"),
    "heads do not divide": ({"attention__head_count_kv": 5}, "5 does not divide 32 heads"),
    "hidden does not divide": (
        {
            "attention__head_count": 30, "attention__head_count_kv": 30,
            "attention__key_length": None,
        },
        "30 does not divide 2048",
    ),
    "head odd": ({"attention__key_length": 63}, "63 is odd"),
    "eps missing": ({"attention__layer_norm_rms_epsilon": None}, "epsilon is missing"),
    "eps a list": ({"attention__layer_norm_rms_epsilon": [1e-5]}, "must be a number"),
    "theta nan": ({"rope__freq_base": float("nan")}, "must be between"),
    "factor nought": ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, "factor"),
    "context absurd": ({"context_length": 1 << 40}, "context_length"),
    "context a list": ({"context_length": [[4096]]}, "must be an integer"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_values_out_of_range_are_told_by_their_keys(case: str):
    changes, message = BAD[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        config_of(metadata(**changes))
    assert caught.value.message.startswith("m.gguf: llama.")


def test_more_tokens_than_embeddings_are_told():
    keys = metadata() | {"tokenizer.ggml.tokens": ["a"] * 128257}
    with pytest.raises(CheckpointError, match="128257 tokens, but 128256 embeddings"):
        config_of(keys)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"expert_count": 8}, "mixtures of experts"),
    "values of another length": ({"attention__value_length": 32}, "different lengths"),
    "a part of each head": ({"rope__dimension_count": 32}, "a part of each head"),
    "scaling": ({"rope__scaling__type": "longrope"}, "'longrope' is not supported; known: none"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_named(case: str):
    changes, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModel, match=message):
        config_of(metadata(**changes))


@pytest.mark.parametrize("arch", ["gemma3", "", "llama2"])
def test_unknown_architectures_are_refused_with_the_known_ones(arch: str):
    with pytest.raises(UnsupportedModel, match=f"'{arch}' is not supported; known: llama, qwen2"):
        config_of(metadata(arch))


def test_names():
    assert decoder_name("blk.10.attn_k_norm.weight") == "model.layers.10.self_attn.k_norm.weight"
    assert decoder_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert decoder_name("output.weight") == "lm_head.weight"
    for unknown in (
        "blk.00.attn_q.weight",
        "blk.1.attn_q.scale",
        "blk.1.ffn_gate_exps.weight",
        "x",
    ):
        assert decoder_name(unknown) == unknown
