"""Typed, bounded access to a config.json that nobody has checked. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cortex.engine.models.config import RopeConfig
from cortex.errors import CheckpointError, UnsupportedModel, clip

MAX_CONTEXT = 1 << 24  # tokens; an order above any model known


class Fields:
    """The members of a JSON object; every reader raises CheckpointError naming the member."""

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        self._raw = raw
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._raw.get(name) is not None

    def integer(self, name: str, default: int | None, *, low: int, high: int) -> int:
        """An integer in [low, high]; a *default* of None makes the member mandatory."""
        value = self._raw.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad(name, "must be an integer", value)
        if not low <= value <= high:
            raise self._bad(name, f"must be between {low} and {high}", value)
        return value

    def number(self, name: str, default: float | None, *, low: float, high: float) -> float:
        """A finite number in [low, high]."""
        value = self._raw.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(name, "must be a number", value)
        if not (math.isfinite(value) and low <= value <= high):
            raise self._bad(name, f"must be between {low:g} and {high:g}", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._bad(name, "must be true or false", value)
        return value

    def text(self, name: str, default: str) -> str:
        value = self._raw.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._bad(name, "must be a string", value)
        return value

    def names(self, name: str) -> list[str]:
        """A list of strings; absent is empty."""
        value = self._raw.get(name)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._bad(name, "must be a list of strings", value)
        return value

    def integers(self, name: str, *, low: int, high: int) -> list[int]:
        """A list of integers in [low, high]; absent is empty."""
        value = self._raw.get(name)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise self._bad(name, "must be a list of integers", value)
        where = f"{self._where}: {name}"
        return [
            Fields({"size": item}, where).integer("size", None, low=low, high=high)
            for item in value
        ]

    def members(self, name: str) -> Mapping[str, Any]:
        """The members of a nested object; absent has none."""
        value = self._raw.get(name)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self._bad(name, "must be an object", value)
        return value

    def section(self, name: str) -> Fields | None:
        """A nested object, or None when it is absent."""
        if name not in self:
            return None
        return Fields(self.members(name), f"{self._where}: {name}")

    def heads(self, *, hidden: int, head_dim: int | None) -> tuple[int, int, int]:
        """Query heads, key and value heads, and the head dimension (*head_dim* by default)."""
        heads = self.integer("num_attention_heads", None, low=1, high=4096)
        kv_heads = self.integer("num_key_value_heads", heads, low=1, high=4096)
        if heads % kv_heads:
            raise self._bad("num_key_value_heads", f"must divide {heads} heads", kv_heads)
        if head_dim is None and hidden % heads and "head_dim" not in self:
            raise self._bad("num_attention_heads", f"must divide hidden_size {hidden}", heads)
        dim = self.integer("head_dim", head_dim or hidden // heads, low=2, high=1024)
        if dim % 2:
            raise self._bad("head_dim", "must be even", dim)
        return heads, kv_heads, dim

    def rope(self, *, context: int) -> RopeConfig:
        """Rotary positions from ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``."""
        section = self.section("rope_parameters") or self.section("rope_scaling") or Fields({})
        theta = self.number("rope_theta", 10000.0, low=1.0, high=1e15)
        theta = section.number("rope_theta", theta, low=1.0, high=1e15)
        partial = self.number("partial_rotary_factor", 1.0, low=0.0, high=1.0)
        if section.number("partial_rotary_factor", partial, low=0.0, high=1.0) != 1.0:
            raise UnsupportedModel("rotary embedding of a part of each head is not supported")
        kind = section.text("rope_type", section.text("type", "default"))
        if kind == "default":
            return RopeConfig(theta=theta)
        if kind not in ("linear", "llama3", "yarn"):
            raise UnsupportedModel(
                f"rope type '{clip(kind)}' is not supported; known: default, linear, llama3, yarn"
            )
        stated = self.integer("original_max_position_embeddings", context, low=1, high=MAX_CONTEXT)
        original = section.integer(
            "original_max_position_embeddings", stated, low=1, high=MAX_CONTEXT
        )
        attention_factor = (
            section.number("attention_factor", None, low=0.0, high=1e3)
            if "attention_factor" in section
            else None
        )
        low_freq = section.number("low_freq_factor", 1.0, low=1e-6, high=1e6)
        high_freq = section.number("high_freq_factor", 4.0, low=1e-6, high=1e6)
        if kind == "llama3" and high_freq <= low_freq:
            raise section._bad("high_freq_factor", "must be above low_freq_factor", high_freq)
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=section.number("factor", context / original, low=1e-3, high=1e4),
            original=original,
            low_freq_factor=low_freq,
            high_freq_factor=high_freq,
            beta_fast=section.number("beta_fast", 32.0, low=1e-6, high=1e6),
            beta_slow=section.number("beta_slow", 1.0, low=1e-6, high=1e6),
            mscale=section.number("mscale", 0.0, low=0.0, high=1e3),
            mscale_all_dim=section.number("mscale_all_dim", 0.0, low=0.0, high=1e3),
            attention_factor=attention_factor,
            truncate=section.flag("truncate", True),
        )

    def windows(self, layers: int, *, window: int | None) -> tuple[int | None, ...]:
        """Each layer's window by ``layer_types``, else by ``max_window_layers``."""
        kinds = self.names("layer_types")
        if kinds:
            if len(kinds) != layers:
                raise self._bad("layer_types", f"must have {layers} entries", len(kinds))
            unknown = sorted({*kinds} - {"full_attention", "sliding_attention"})
            if unknown:
                raise UnsupportedModel(f"attention of type '{clip(unknown[0])}' is not supported")
            return tuple(window if kind == "sliding_attention" else None for kind in kinds)
        first = self.integer("max_window_layers", 28, low=0, high=1 << 20)
        return tuple(window if i >= first else None for i in range(layers))

    def context(self, default: int) -> int:
        """The trained length in tokens."""
        return self.integer("max_position_embeddings", default, low=1, high=MAX_CONTEXT)

    def _bad(self, name: str, what: str, value: object) -> CheckpointError:
        shown = "is missing" if value is None else f"is {clip(value, 40)}"
        return CheckpointError(f"{self._where}: {name} {shown}; it {what}")


def dense(
    fields: Fields, architecture: str, *, head_dim: int | None = None, context: int
) -> dict[str, Any]:
    """The members of ModelConfig that every dense decoder reads alike."""
    act = fields.text("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedModel(f"activation '{clip(act)}' is not supported; known: silu")
    hidden = fields.integer("hidden_size", None, low=1, high=1 << 17)
    heads, kv_heads, dim = fields.heads(hidden=hidden, head_dim=head_dim)
    trained = fields.context(context)
    rope = fields.rope(context=trained)
    stretched = int(rope.original * rope.factor) if rope.kind == "yarn" else 0
    return {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size", None, low=1, high=1 << 23),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size", None, low=1, high=1 << 20),
        "layers": fields.integer("num_hidden_layers", None, low=1, high=2048),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": dim,
        "norm_eps": fields.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
        "rope": rope,
        "trained_context": min(max(trained, stretched), MAX_CONTEXT),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
        "dtype": fields.text("dtype", fields.text("torch_dtype", "")) or None,
    }
