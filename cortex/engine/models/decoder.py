"""The dense decoder that Qwen, Llama and Mistral share; a ModelConfig says which parts it has.

Built on the meta device from the config alone, without a touch of the real one: the loader fills
`parameters`, which is also what memory is estimated from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cortex.engine.batch import Batch
from cortex.engine.cache import KVCache
from cortex.engine.kernels.ops import Angles, Ops
from cortex.engine.layers.embedding import Embedding
from cortex.engine.layers.linear import Linear
from cortex.engine.layers.parameter import Parameter
from cortex.engine.layers.rotary import Rotary
from cortex.engine.models.config import ModelConfig
from cortex.engine.quant.types import QuantType

# The format that a checkpoint's tensor of a name and a shape is kept in; None: the compute dtype.
Storage = Callable[[str, tuple[int, int]], QuantType | None]


def dense(name: str, shape: tuple[int, int]) -> QuantType | None:
    """The `Storage` of a model that is not quantised."""
    return None


class _Builder:
    """Makes the parts of one model."""

    def __init__(self, ops: Ops, dtype: torch.dtype, storage: Storage) -> None:
        self.ops = ops
        self.dtype = dtype
        self._storage = storage

    def linear(self, prefix: str, parts: dict[str, int], inputs: int, *, bias: bool) -> Linear:
        """One Linear from the projections *parts* (name: outputs), stacked.

        Neighbours that are kept in the same format become one weight.
        """
        groups: list[tuple[QuantType | None, list[tuple[str, int]]]] = []
        for part, rows in parts.items():
            name = f"{prefix}.{part}.weight"
            quant = self._storage(name, (rows, inputs))
            if not groups or groups[-1][0] != quant:
                groups.append((quant, []))
            groups[-1][1].append((name, rows))
        weights = [
            Parameter((sum(rows for _, rows in group), inputs), self.dtype, tuple(group), quant)
            for quant, group in groups
        ]
        if not bias:
            return Linear(self.ops, weights)
        sources = tuple((f"{prefix}.{part}.bias", rows) for part, rows in parts.items())
        return Linear(self.ops, weights, Parameter((sum(parts.values()),), self.dtype, sources))

    def table(self, name: str, shape: tuple[int, int]) -> Parameter:
        """A weight over the vocabulary: embedding or head."""
        return Parameter.of(name, shape, self.dtype, self._storage(name, shape))

    def norm(self, name: str, size: int) -> Parameter:
        return Parameter.of(name, (size,), self.dtype)


class DecoderLayer:
    """Attention, then a gated MLP, each on the normalised residual stream."""

    def __init__(self, config: ModelConfig, index: int, builder: _Builder) -> None:
        prefix, hidden, dim = f"model.layers.{index}", config.hidden_size, config.head_dim
        heads, kv_heads, inner = config.heads, config.kv_heads, config.intermediate_size
        self.index = index
        self.window = config.windows[index]
        self._eps = config.norm_eps
        self._ops = builder.ops
        self.qkv = builder.linear(
            f"{prefix}.self_attn",
            {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim},
            hidden,
            bias=config.qkv_bias,
        )
        self.output = builder.linear(
            f"{prefix}.self_attn", {"o_proj": hidden}, heads * dim, bias=config.output_bias
        )
        self.gate_up = builder.linear(
            f"{prefix}.mlp", {"gate_proj": inner, "up_proj": inner}, hidden, bias=config.mlp_bias
        )
        self.down = builder.linear(
            f"{prefix}.mlp", {"down_proj": hidden}, inner, bias=config.mlp_bias
        )
        self.input_norm = builder.norm(f"{prefix}.input_layernorm.weight", hidden)
        self.mlp_norm = builder.norm(f"{prefix}.post_attention_layernorm.weight", hidden)
        self.head_norms = (
            (
                builder.norm(f"{prefix}.self_attn.q_norm.weight", dim),
                builder.norm(f"{prefix}.self_attn.k_norm.weight", dim),
            )
            if config.qk_norm
            else None
        )

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.qkv, self.output, self.gate_up, self.down)

    @property
    def norms(self) -> list[Parameter]:
        return [self.input_norm, self.mlp_norm, *(self.head_norms or ())]

    def attend(self, x: torch.Tensor, batch: Batch, cache: KVCache, angles: Angles) -> torch.Tensor:
        """``(tokens, hidden)`` normalised input to the attention's output of the same shape."""
        keys, values = cache.keys[self.index], cache.values[self.index]
        norms = None
        if self.head_norms is not None:
            norms = self.head_norms[0].data, self.head_norms[1].data
        q = self._ops.place(self.qkv(x), norms, angles, self._eps, keys, values, batch.slots)
        return self.output(self._ops.attend(q, keys, values, batch, self.window))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self._ops.silu_mul(self.gate_up(x)))


class Decoder:
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
        storage: Storage = dense,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.ops = ops
        builder = _Builder(ops, dtype, storage)
        shape = (config.vocab_size, config.hidden_size)
        embedding = builder.table("model.embed_tokens.weight", shape)
        self.embedding = Embedding(ops, embedding)
        self.layers = [DecoderLayer(config, i, builder) for i in range(config.layers)]
        self.norm = builder.norm("model.norm.weight", config.hidden_size)
        # Tied, the head is the embedding itself; where the head is laid out, it is a second copy.
        head = embedding
        if not config.tied_embeddings:
            head = builder.table("lm_head.weight", shape)
        elif ops.copies(dtype, embedding.quant):
            head = builder.table("model.embed_tokens.weight", shape)
        self.head = Linear(ops, [head])
        self.rotary = Rotary(config.rope, config.head_dim)

    @property
    def shares_embedding(self) -> bool:
        """Whether head and embedding are one tensor."""
        return self.head.weights[0] is self.embedding.weight

    def units(self) -> Iterator[tuple[list[Parameter], Callable[[], None]]]:
        """Parameters in the order in which they are loaded, and what to do after each lot."""
        yield [self.embedding.weight], self.head.finish if self.shares_embedding else _nothing
        for layer in self.layers:
            for linear in layer.linears:
                yield linear.parameters, linear.finish
            yield layer.norms, _nothing
        yield [self.norm, *self.rotary.parameters], lambda: self.rotary.place(self.device)
        if not self.shares_embedding:
            yield self.head.parameters, self.head.finish

    def parameters(self) -> list[Parameter]:
        return [parameter for lot, _ in self.units() for parameter in lot]

    @property
    def bytes(self) -> int:
        """What the weights take on the device, as they are laid out there; known before a load."""
        linears = [linear for layer in self.layers for linear in layer.linears]
        if not self.shares_embedding:
            linears.append(self.head)
        small = [norm for layer in self.layers for norm in layer.norms]
        small += [self.norm, *self.rotary.parameters]
        return (
            self.embedding.weight.bytes
            + sum(linear.bytes for linear in linears)
            + sum(parameter.bytes for parameter in small)
        )

    @property
    def matrix_bytes(self) -> int:
        """What a step reads of the weights: all linears and the head."""
        return self.head.bytes + sum(
            linear.bytes for layer in self.layers for linear in layer.linears
        )

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Hidden states ``(tokens, hidden)``, normalised; writes the tokens' KV into *cache*."""
        ops, eps = self.ops, self.config.norm_eps
        ops.begin_step()
        angles = self.rotary.angles(batch.positions)
        x = self.embedding(batch.tokens)
        normed = ops.rms_norm(x, self.layers[0].input_norm.data, eps)
        following = [layer.input_norm.data for layer in self.layers[1:]] + [self.norm.data]
        for layer, next_norm in zip(self.layers, following, strict=True):
            attended = layer.attend(normed, batch, cache, angles)
            x, normed = ops.add_rms_norm(x, attended, layer.mlp_norm.data, eps)
            x, normed = ops.add_rms_norm(x, layer.mlp(normed), next_norm, eps)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(rows, hidden)`` to fp32 ``(rows, vocabulary)``."""
        return self.head(hidden).float()


def _nothing() -> None:
    pass
