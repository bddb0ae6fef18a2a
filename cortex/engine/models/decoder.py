"""The dense decoder that Qwen, Llama and Mistral share; a ModelConfig says which parts it has.

Built on the meta device from the config alone, without a touch of the real one: the loader fills
`parameters`, which is also what memory is estimated from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from cortex.engine.batch import Batch
from cortex.engine.cache import KVCache
from cortex.engine.layers.attention import Attention, Gatherer
from cortex.engine.layers.embedding import Embedding
from cortex.engine.layers.linear import Linear, can_pack
from cortex.engine.layers.norm import RMSNorm, rms_norm
from cortex.engine.layers.parameter import Parameter
from cortex.engine.layers.rotary import Rotary
from cortex.engine.models.config import ModelConfig


def _linear(
    prefix: str, parts: dict[str, int], inputs: int, dtype: torch.dtype, *, bias: bool
) -> Linear:
    """One Linear from the projections *parts* (name: outputs), stacked."""
    outputs = sum(parts.values())
    named = [(f"{prefix}.{name}", rows) for name, rows in parts.items()]
    weight = Parameter((outputs, inputs), dtype, tuple((f"{n}.weight", r) for n, r in named))
    if not bias:
        return Linear(weight)
    return Linear(weight, Parameter((outputs,), dtype, tuple((f"{n}.bias", r) for n, r in named)))


class DecoderLayer:
    """Attention, then a gated MLP, each on the normalised residual stream."""

    def __init__(self, config: ModelConfig, index: int, dtype: torch.dtype) -> None:
        prefix, hidden, dim = f"model.layers.{index}", config.hidden_size, config.head_dim
        heads, kv_heads = config.heads, config.kv_heads
        self.config = config
        self.index = index
        self.window = config.windows[index]
        self.qkv = _linear(
            f"{prefix}.self_attn",
            {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim},
            hidden,
            dtype,
            bias=config.qkv_bias,
        )
        self.output = _linear(
            f"{prefix}.self_attn", {"o_proj": hidden}, heads * dim, dtype, bias=config.output_bias
        )
        inner = config.intermediate_size
        self.gate_up = _linear(
            f"{prefix}.mlp",
            {"gate_proj": inner, "up_proj": inner},
            hidden,
            dtype,
            bias=config.mlp_bias,
        )
        self.down = _linear(
            f"{prefix}.mlp", {"down_proj": hidden}, inner, dtype, bias=config.mlp_bias
        )

        def norm(name: str, size: int) -> RMSNorm:
            weight = Parameter.of(f"{prefix}.{name}.weight", (size,), dtype)
            return RMSNorm(weight, config.norm_eps)

        self.input_norm = norm("input_layernorm", hidden)
        self.mlp_norm = norm("post_attention_layernorm", hidden)
        self.qk_norms = (
            (norm("self_attn.q_norm", dim), norm("self_attn.k_norm", dim))
            if config.qk_norm
            else None
        )
        self._qk_weight: torch.Tensor | None = None  # (heads + kv_heads, head_dim)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.qkv, self.output, self.gate_up, self.down)

    @property
    def norms(self) -> tuple[RMSNorm, ...]:
        return (self.input_norm, self.mlp_norm, *(self.qk_norms or ()))

    def finish(self) -> None:
        if self.qk_norms is not None:
            q, k = (norm.weight.data for norm in self.qk_norms)
            heads, kv_heads = self.config.heads, self.config.kv_heads
            self._qk_weight = torch.cat((q.expand(heads, -1), k.expand(kv_heads, -1)))

    def attend(
        self,
        x: torch.Tensor,
        batch: Batch,
        cache: KVCache,
        attention: Attention,
        turn: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """``(tokens, hidden)`` normalised input to the attention's output of the same shape."""
        config = self.config
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        split = self.qkv(x).view(-1, heads + 2 * kv_heads, dim)
        qk, v = split[:, : heads + kv_heads], split[:, heads + kv_heads :]
        if self._qk_weight is not None:
            qk = rms_norm(qk, self._qk_weight, config.norm_eps)
        qk = turn(qk)
        keys, values = cache.keys[self.index], cache.values[self.index]
        keys.view(-1, kv_heads, dim).index_copy_(0, batch.slots, qk[:, heads:])
        values.view(-1, kv_heads, dim).index_copy_(0, batch.slots, v)
        return self.output(attention(qk[:, :heads], keys, values, batch.views[self.window]))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up(x)
        inner = self.config.intermediate_size
        return self.down(F.silu(both[:, :inner]) * both[:, inner:])


class Decoder:
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = Embedding(Parameter.of("model.embed_tokens.weight", shape, dtype))
        self.layers = [DecoderLayer(config, i, dtype) for i in range(config.layers)]
        norm = Parameter.of("model.norm.weight", (config.hidden_size,), dtype)
        self.norm = RMSNorm(norm, config.norm_eps)
        # Tied and not packed, the head is the embedding itself; packed, it is a second copy.
        head = self.embedding.weight
        if not config.tied_embeddings:
            head = Parameter.of("lm_head.weight", shape, dtype)
        elif can_pack(device, dtype):
            head = Parameter.of("model.embed_tokens.weight", shape, dtype)
        self.head = Linear(head)
        self.attention = Attention(Gatherer())
        self.rotary = Rotary(config.rope, config.head_dim)

    def units(self) -> Iterator[tuple[list[Parameter], Callable[[], None]]]:
        """Parameters in the order in which they are loaded, and what to do after each lot."""
        yield [self.embedding.weight], lambda: None
        for layer in self.layers:
            for linear in layer.linears:
                lot = [linear.weight] + ([linear.bias] if linear.bias is not None else [])
                yield lot, linear.finish
            yield [norm.weight for norm in layer.norms], layer.finish
        yield [self.norm.weight], lambda: self.rotary.place(self.device)
        if self.head.weight is not self.embedding.weight:
            yield [self.head.weight], self.head.finish

    def parameters(self) -> list[Parameter]:
        return [parameter for lot, _ in self.units() for parameter in lot]

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """Hidden states ``(tokens, hidden)``, normalised; writes the tokens' KV into *cache*."""
        self.attention.begin_step()
        cos, sin = self.rotary.angles(batch.positions)

        def turn(x: torch.Tensor) -> torch.Tensor:
            return self.rotary.turn(x, cos, sin)

        x = self.embedding(batch.tokens)
        for layer in self.layers:
            x = x + layer.attend(layer.input_norm(x), batch, cache, self.attention, turn)
            x = x + layer.mlp(layer.mlp_norm(x))
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(rows, hidden)`` to fp32 ``(rows, vocabulary)``."""
        return self.head(hidden).float()
