"""The shape of a dense decoder, checked. No torch."""

from __future__ import annotations

import attrs


@attrs.frozen
class RopeConfig:
    """Rotary positions: ``kind`` is default, linear, llama3 or yarn; the rest as that kind needs.

    ``original`` is the trained length in tokens that scaling starts from. ``attention_factor``
    multiplies cosines and sines; None derives it from ``factor`` as YaRN does. ``factored``: the
    checkpoint brings a divisor for each frequency.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True
    factored: bool = False


@attrs.frozen
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of a model.

    ``windows`` has one entry a layer: how many positions a token attends to, itself included, or
    None for all before it. ``dtype`` is the checkpoint's own, or None when it does not say.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    trained_context: int
    windows: tuple[int | None, ...]
    tied_embeddings: bool
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    dtype: str | None = None

    @property
    def group(self) -> int:
        """Query heads that share a key and value head."""
        return self.heads // self.kv_heads
