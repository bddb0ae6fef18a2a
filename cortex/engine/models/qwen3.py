"""Qwen3: queries and keys are normalised per head; head_dim is stated, 128 by default."""

from __future__ import annotations

from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields, dense

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"


def configure(fields: Fields) -> ModelConfig:
    common = dense(fields, ARCHITECTURE, head_dim=128, context=32768)
    window = None
    if fields.flag("use_sliding_window", False) and "sliding_window" in fields:
        window = fields.integer("sliding_window", None, low=1, high=1 << 24)
    bias = fields.flag("attention_bias", False)
    return ModelConfig(
        **common,
        windows=fields.windows(common["layers"], window=window),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
    )
