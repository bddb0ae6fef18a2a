"""Llama 2, 3 and their many descendants: optional biases, scaled rotary positions."""

from __future__ import annotations

from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields, dense

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"


def configure(fields: Fields) -> ModelConfig:
    common = dense(fields, ARCHITECTURE, context=2048)
    bias = fields.flag("attention_bias", False)
    return ModelConfig(
        **common,
        windows=(None,) * common["layers"],
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
