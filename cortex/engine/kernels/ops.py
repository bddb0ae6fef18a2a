"""The seam between models and devices: the operations that a decoder is made of.

A set of kernels implements `Ops`; `torch_ops` is the one that runs everywhere, says what each
operation means, and is what the others are tested against. Tensors are on the set's device;
activations are in the compute dtype, fp32 or bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import torch

from cortex.engine.quant.types import QuantType

if TYPE_CHECKING:  # only `attend` takes one
    from cortex.engine.batch import Batch


@attrs.frozen(eq=False)
class Angles:
    """Cosines and sines of a batch's positions, scaled as the model asks: ``(tokens, dim / 2)``,
    fp32. Dimension i of a head turns with dimension i + dim / 2."""

    cos: torch.Tensor
    sin: torch.Tensor


@attrs.frozen(eq=False)
class DrawParams:
    """How each of some rows is drawn, on the device: all ``(rows,)``.

    ``temperature`` fp32, 0 is greedy; ``top_k`` int32, 0 is off; ``top_p`` and ``min_p`` fp32, 1
    and 0 are off; ``uniform`` fp64 in [0, 1), at which the distribution is inverted.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor


class Product(Protocol):
    """A weight laid out for its device. ``bytes`` is all that it keeps there."""

    @property
    def bytes(self) -> int: ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``(tokens, inputs)`` to ``(tokens, outputs)``, both in the compute dtype."""
        ...


class Ops(Protocol):
    """The operations of one device. An instance belongs to one model: it may keep scratch memory
    from call to call, and results are good until the same operation is called again."""

    @property
    def capturable(self) -> bool:
        """Whether decode can be captured in a graph: no operation plans on the host, or looks."""
        ...

    def copies(self, dtype: torch.dtype, quant: QuantType | None) -> bool:
        """Whether `product` lays a copy out, so that the tensor it was given can be let go."""
        ...

    def product_bytes(
        self, rows: int, inputs: int, dtype: torch.dtype, quant: QuantType | None
    ) -> int:
        """What the `bytes` of such a product are going to be, bias left out."""
        ...

    def product(
        self, weight: torch.Tensor, quant: QuantType | None, bias: torch.Tensor | None
    ) -> Product:
        """Lay *weight* out: ``(outputs, inputs)``, or packed uint8 ``(outputs, row bytes)``."""
        ...

    def embed(
        self,
        tokens: torch.Tensor,
        weight: torch.Tensor,
        quant: QuantType | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The rows of *weight* (dense or packed) that ``(tokens,)`` ids name, in *dtype*."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``(tokens, hidden)`` over the root of its mean square, in fp32; the quotient is rounded
        to the dtype of *x* before it is multiplied by *weight*."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x + delta``, rounded, and its `rms_norm`. *x* may be overwritten."""
        ...

    def place(
        self,
        qkv: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        angles: Angles,
        eps: float,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Split ``(tokens, (heads + 2 kv_heads) dim)``, norm the heads of queries and keys with
        *norms* ``((dim,), (dim,))``, turn them, and write keys and values into the cache.

        *keys* and *values* are ``(blocks, block, kv_heads, dim)``; *slots* ``(tokens,)`` say where:
        block times block size plus offset. Returns the queries, ``(tokens, heads, dim)``.
        """
        ...

    def attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: Batch,
        window: int | None,
    ) -> torch.Tensor:
        """``(tokens, heads, dim)`` queries against the cache: ``(tokens, heads dim)``.

        A row at position p sees positions ``max(0, p + 1 - window)`` to p of its sequence.
        """
        ...

    def silu_mul(self, both: torch.Tensor) -> torch.Tensor:
        """``(tokens, 2 inner)``: silu of the first half times the second, ``(tokens, inner)``."""
        ...

    def draw(self, logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
        """``(rows, vocabulary)`` fp32 logits to ``(rows,)`` int64 tokens, as `DrawParams` say.

        Cuts are thresholds on the logits after temperature, ties kept; top-p counts within what
        top-k left. No size depends on the values: it can be part of a captured graph.
        """
        ...

    def begin_step(self) -> None:
        """A new batch follows: what was kept for the layers of the last one is stale."""
        ...
