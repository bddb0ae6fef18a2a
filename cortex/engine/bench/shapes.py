"""Shapes to measure with, as their config.json files state them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields
from cortex.engine.models.registry import configure


def _qwen3(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool, **more: int
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **more,
    }


SHAPES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        # 29 million parameters: for machines without a GPU, and for trying this out.
        "qwen3-29m": _qwen3(512, 1536, 4, 8, 4, tied=True, head_dim=64, vocab_size=32768),
        "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
        "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
        "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
        "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8, tied=False),
        "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8, tied=False),
        "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8, tied=False),
    }
)


def config_of(name: str) -> ModelConfig:
    """The config of the shape *name*. KeyError when there is none of that name."""
    return configure(Fields(SHAPES[name], name))


def matrix_elements(config: ModelConfig) -> int:
    """Weights that a step multiplies by: all linears and the head, the embedding left out."""
    dim, hidden = config.head_dim, config.hidden_size
    attention = hidden * dim * (2 * config.heads + 2 * config.kv_heads)
    layer = attention + 3 * hidden * config.intermediate_size
    return config.layers * layer + config.vocab_size * hidden
