"""Qwen2 and Qwen2.5: the projections to queries, keys and values have a bias."""

from __future__ import annotations

from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields, dense

ARCHITECTURE = "Qwen2ForCausalLM"
MODEL_TYPE = "qwen2"


def configure(fields: Fields) -> ModelConfig:
    common = dense(fields, ARCHITECTURE, context=32768)
    window = None
    if fields.flag("use_sliding_window", False) and "sliding_window" in fields:
        window = fields.integer("sliding_window", None, low=1, high=1 << 24)
    return ModelConfig(
        **common,
        windows=fields.windows(common["layers"], window=window),
        qkv_bias=True,
    )
