"""Mistral: every layer attends within one sliding window, where the checkpoint has one."""

from __future__ import annotations

from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields, dense

ARCHITECTURE = "MistralForCausalLM"
MODEL_TYPE = "mistral"


def configure(fields: Fields) -> ModelConfig:
    common = dense(fields, ARCHITECTURE, context=131072)
    window = None
    if "sliding_window" in fields:
        window = fields.integer("sliding_window", None, low=1, high=1 << 24)
    return ModelConfig(**common, windows=(window,) * common["layers"])
