"""A model's shape out of GGUF metadata and the tensor table. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.gguf_names import ROPE_FACTORS
from cortex.engine.models import llama, qwen2, qwen3
from cortex.engine.models.config import ModelConfig, RopeConfig
from cortex.engine.models.fields import MAX_CONTEXT, Fields
from cortex.errors import CheckpointError, UnsupportedModel, clip

TOKENS = "tokenizer.ggml.tokens"


@attrs.frozen
class Family:
    """What ``general.architecture`` stands for.

    ``interleaved``: rows of queries and keys are in pairs that turn together, where decoders here
    turn the halves of a head.
    """

    architecture: str
    interleaved: bool = False
    qk_norm: bool = False


# Mistral's models are "llama" to llama.cpp's converter.
FAMILIES = {
    "llama": Family(llama.ARCHITECTURE, interleaved=True),
    "qwen2": Family(qwen2.ARCHITECTURE),
    "qwen3": Family(qwen3.ARCHITECTURE, qk_norm=True),
}


def family_of(metadata: Mapping[str, Any], where: str) -> Family:
    """Raises UnsupportedModel, naming the known ones."""
    name = Fields(metadata, where).text("general.architecture", "")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(f"GGUF architecture '{clip(name)}' is not supported; known: {known}")
    return FAMILIES[name]


def configure(
    metadata: Mapping[str, Any], entries: Mapping[str, TensorEntry], where: str
) -> ModelConfig:
    """The checked config of a file with *entries*, which have a decoder's names.

    Raises UnsupportedModel, and CheckpointError for values out of range.
    """
    family = family_of(metadata, where)
    fields = _Keys(metadata, where)
    if fields.count("expert_count", 0, low=0, high=1 << 16):
        raise UnsupportedModel("mixtures of experts are not supported in GGUF files")
    hidden = fields.count("embedding_length", high=1 << 17)
    heads, kv_heads, dim = fields.heads(hidden)
    layers = fields.count("block_count", high=2048)
    context = fields.count("context_length", high=MAX_CONTEXT)
    rope = fields.rope(context, ROPE_FACTORS in entries)
    stretched = int(rope.original * rope.factor) if rope.kind == "yarn" else 0
    window = fields.count("attention.sliding_window", 0, low=0, high=MAX_CONTEXT) or None
    first = "model.layers.0"
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=_vocabulary(metadata, entries, where),
        hidden_size=hidden,
        intermediate_size=fields.count("feed_forward_length", high=1 << 20),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", None, low=0.0, high=1.0),
        rope=rope,
        trained_context=min(max(context, stretched), MAX_CONTEXT),
        windows=(window,) * layers,
        tied_embeddings="lm_head.weight" not in entries,
        qk_norm=family.qk_norm,
        qkv_bias=f"{first}.self_attn.q_proj.bias" in entries,
        output_bias=f"{first}.self_attn.o_proj.bias" in entries,
        mlp_bias=f"{first}.mlp.gate_proj.bias" in entries,
        dtype=_dtype(entries),
    )


def _vocabulary(metadata: Mapping[str, Any], entries: Mapping[str, TensorEntry], where: str) -> int:
    """Rows of the embedding, at least as many as there are tokens."""
    embedding = entries.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(f"{where}: tensor 'token_embd.weight' is missing")
    rows = embedding.shape[0]
    tokens = metadata.get(TOKENS)
    if isinstance(tokens, list) and len(tokens) > rows:
        raise CheckpointError(f"{where}: {len(tokens)} tokens, but {rows} embeddings")
    return rows


def _dtype(entries: Mapping[str, TensorEntry]) -> str:
    """fp32 where matrices are kept so; packed ones are no more precise than bf16."""
    wide = any(entry.dtype == "F32" and len(entry.shape) > 1 for entry in entries.values())
    return "float32" if wide else "bfloat16"


class _Keys:
    """The metadata under the architecture's own prefix."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._prefix = f"{metadata['general.architecture']}."
        self._metadata = metadata
        self._fields = Fields(metadata, where)
        self._where = where

    def count(self, key: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """An integer; where there is one for each layer, they must be alike."""
        name = self._prefix + key
        values = self._metadata.get(name)
        if not isinstance(values, Sequence) or isinstance(values, str):
            return self._fields.integer(name, default, low=low, high=high)
        if not values or any(value != values[0] for value in values):
            raise UnsupportedModel(f"{self._where}: {name} differs from layer to layer")
        return Fields({name: values[0]}, self._where).integer(name, default, low=low, high=high)

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        return self._fields.number(self._prefix + key, default, low=low, high=high)

    def heads(self, hidden: int) -> tuple[int, int, int]:
        """Query heads, key and value heads, and the head dimension."""
        heads = self.count("attention.head_count", high=4096)
        kv_heads = self.count("attention.head_count_kv", heads, high=4096)
        if heads % kv_heads:
            raise self._bad("attention.head_count_kv", f"{kv_heads} does not divide {heads} heads")
        stated = f"{self._prefix}attention.key_length" in self._fields
        if not stated and hidden % heads:
            raise self._bad("attention.head_count", f"{heads} does not divide {hidden}")
        dim = self.count("attention.key_length", hidden // heads, low=2, high=1024)
        if dim % 2:
            raise self._bad("attention.key_length", f"{dim} is odd")
        if self.count("attention.value_length", dim, high=1024) != dim:
            raise UnsupportedModel("keys and values of different lengths are not supported")
        if self.count("rope.dimension_count", dim, high=1024) != dim:
            raise UnsupportedModel("rotary embedding of a part of each head is not supported")
        return heads, kv_heads, dim

    def rope(self, context: int, factored: bool) -> RopeConfig:
        """Rotary positions; *factored* where the file brings a factor for each frequency."""
        theta = self.number("rope.freq_base", 10000.0, low=1.0, high=1e15)
        kind = self._fields.text(f"{self._prefix}rope.scaling.type", "none")
        old = self.number("rope.scale_linear", 1.0, low=1e-3, high=1e4)
        factor = self.number("rope.scaling.factor", old, low=1e-3, high=1e4)
        if kind == "none" and factor != 1.0:
            kind = "linear"
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return RopeConfig(theta=theta, factored=factored)
        if kind not in ("linear", "yarn"):
            raise UnsupportedModel(
                f"rope scaling '{clip(kind)}' is not supported; known: none, linear, yarn"
            )
        original = self.count("rope.scaling.original_context_length", context, high=MAX_CONTEXT)
        attention_factor = None
        if f"{self._prefix}rope.scaling.attn_factor" in self._fields:
            scale = self.number("rope.scaling.attn_factor", 1.0, low=0.0, high=1e3)
            attention_factor = scale * (1.0 + 0.1 * math.log(max(factor, 1.0)))
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=factor,
            original=original,
            attention_factor=attention_factor,
            beta_fast=self.number("rope.scaling.yarn_beta_fast", 32.0, low=1e-6, high=1e6),
            beta_slow=self.number("rope.scaling.yarn_beta_slow", 1.0, low=1e-6, high=1e6),
            factored=factored,
        )

    def _bad(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {self._prefix}{key} {what}")
