"""A few milliseconds of arithmetic, before a library that was just loaded is trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cortex.engine.kernels.native.arena import Arena
from cortex.engine.kernels.native.library import Library
from cortex.engine.kernels.native.products import Memory, dense_product, packed_product
from cortex.engine.quant.types import Q4_K, Q8_0, QuantType


class CheckFailed(Exception):
    """The library computes something else than it should."""


def check(library: Library) -> None:
    """Compare products, a norm and attention with torch. Raises `CheckFailed`."""
    random = torch.Generator().manual_seed(0)
    for kind in (Q8_0, Q4_K):
        _check_packed(library, kind, random)
    if library.dense_bytes(1, 1) > 0:
        _check_dense(library, random)
    _check_norm(library, random)
    _check_attention(library, random)


def _compare(what: str, found: torch.Tensor, wanted: torch.Tensor, bound: float) -> None:
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    if not error < bound:
        raise CheckFailed(f"{what} is off by {error:.1e}")


def _check_packed(library: Library, kind: QuantType, random: torch.Generator) -> None:
    rows, inputs = 35, 512
    packed = torch.randint(
        0, 256, (rows, inputs // kind.block, kind.bytes), generator=random, dtype=torch.uint8
    )
    packed[:, :, 1] = 0x21  # the high byte of d, and of dmin in Q4_K: about 0.01
    packed[:, :, 3] = 0x21
    packed = packed.view(rows, -1)
    ids, weight = torch.arange(rows), torch.empty(rows, inputs)
    address = packed.data_ptr()
    library.embed(
        kind.gguf_id, rows, inputs, address, ids.data_ptr(), rows, weight.data_ptr(), False, 1
    )
    product = packed_product(library, Arena(), Memory(), packed, kind, None)
    x = torch.randn(11, inputs, generator=random)
    _compare(f"a {kind.name} product in fp32", product(x), x @ weight.T, 1e-4)
    rounded = x.bfloat16()
    _compare(f"a {kind.name} product in bf16", product(rounded), rounded.float() @ weight.T, 0.03)


def _check_dense(library: Library, random: torch.Generator) -> None:
    weight = torch.randn(35, 70, generator=random).bfloat16()
    x = torch.randn(11, 70, generator=random).bfloat16()
    product = dense_product(library, Arena(), Memory(), weight, None)
    _compare("a dense product", product(x), x.float() @ weight.float().T, 0.01)


def _check_norm(library: Library, random: torch.Generator) -> None:
    x, weight = torch.randn(3, 70, generator=random), torch.randn(70, generator=random)
    y = torch.empty_like(x)
    library.norm(x.data_ptr(), None, weight.data_ptr(), None, y.data_ptr(), 3, 70, 1e-6, False, 1)
    _compare("a norm", y, F.rms_norm(x, (70,), weight, 1e-6), 1e-4)


def _check_attention(library: Library, random: torch.Generator) -> None:
    length, dim = 45, 24  # one row in decode, in two blocks of 32
    q = torch.randn(1, 2, dim, generator=random)
    keys, values = (torch.randn(2, 32, 1, dim, generator=random) for _ in range(2))
    tables, firsts = torch.tensor([[1, 0]]).int(), torch.tensor([0, 1]).int()
    lengths, out = torch.tensor([length]).int(), torch.empty(1, 2 * dim)
    memory = Memory()
    address = memory.at_least(library.attend_memory(2, 1, dim, 1, length, 1))
    pointers = [t.data_ptr() for t in (q, keys, values, out, tables, firsts, lengths)]
    library.attend(*pointers, 1, 2, 1, length, 2, 1, dim, 32, 0, dim**-0.5, False, address, 1)
    k, v = (cache.flip(0).view(1, 64, dim)[:, :length] for cache in (keys, values))
    wanted = F.scaled_dot_product_attention(q, k, v)
    _compare("attention", out, wanted.view(1, -1), 1e-4)
