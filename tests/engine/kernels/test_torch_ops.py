"""The reference operations against arithmetic written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fakes.packed import random_packed

from cortex.engine.kernels import torch_products
from cortex.engine.kernels.ops import Angles
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import TYPES, QuantType

CPU = torch.device("cpu")
EPS = 1e-6


def angles_of(positions: list[int], dim: int) -> Angles:
    speeds = 100.0 ** -(torch.arange(dim // 2) / (dim // 2))
    turns = torch.tensor(positions, dtype=torch.float32)[:, None] * speeds
    return Angles(turns.cos(), turns.sin())


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 1, 6), (2, 2, 16)])
def test_place_norms_turns_and_writes(heads, kv_heads, dim, with_norms):
    torch.manual_seed(0)
    tokens, slots = 3, [7, 0, 13]
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    norms = (torch.randn(dim), torch.randn(dim)) if with_norms else None
    angles = angles_of([5, 0, 9], dim)
    keys, values = torch.zeros(2, 4, 8, kv_heads, dim)
    given = qkv.clone()
    q = TorchOps(CPU).place(given, norms, angles, EPS, keys, values, torch.tensor(slots))

    split = qkv.view(tokens, heads + 2 * kv_heads, dim)
    wanted = split.clone()
    half = dim // 2
    for token in range(tokens):
        cos, sin = angles.cos[token], angles.sin[token]
        for head in range(heads + kv_heads):
            x = split[token, head]
            if norms is not None:
                x = normed(x, norms[0] if head < heads else norms[1])
            low, high = x[:half], x[half:]
            wanted[token, head] = torch.cat((low * cos - high * sin, high * cos + low * sin))
    torch.testing.assert_close(q, wanted[:, :heads])
    flat_keys, flat_values = keys.view(-1, kv_heads, dim), values.view(-1, kv_heads, dim)
    for token, slot in enumerate(slots):
        torch.testing.assert_close(flat_keys[slot], wanted[token, heads : heads + kv_heads])
        torch.testing.assert_close(flat_values[slot], split[token, heads + kv_heads :])
    others = [slot for slot in range(len(flat_keys)) if slot not in slots]
    assert not flat_keys[others].any()
    assert not flat_values[others].any()


def test_a_sum_is_rounded_before_it_is_normalised():
    torch.manual_seed(0)
    x, delta = (torch.randn(5, 32) * 8).bfloat16(), torch.randn(5, 32).bfloat16()
    weight = torch.randn(32).bfloat16()
    total, out = TorchOps(CPU).add_rms_norm(x.clone(), delta, weight, EPS)
    assert torch.equal(total, x + delta)
    wide = total.float()
    quotient = wide / (wide.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    assert torch.equal(out, quotient.bfloat16() * weight)


def test_silu_mul_gates_the_second_half_with_the_first():
    both = torch.randn(3, 10)
    gate, up = both[:, :5], both[:, 5:]
    torch.testing.assert_close(TorchOps(CPU).silu_mul(both), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_product_is_that_of_the_unpacked_weight(
    kind: QuantType, with_bias: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch_products, "UNPACKED", 5 * 512)  # in parts of 5 rows
    packed = random_packed(kind, 12, 512)
    bias = torch.randn(12) if with_bias else None
    x = torch.randn(3, 512)
    ops = TorchOps(CPU)
    product = ops.product(packed, kind, bias)
    assert product.bytes == packed.nbytes == ops.product_bytes(12, 512, torch.float32, kind)
    wanted = F.linear(x, dequantize(packed, kind, torch.float32), bias)
    torch.testing.assert_close(product(x), wanted)
    narrow = ops.product(packed, kind, None if bias is None else bias.bfloat16())
    assert narrow(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_packed_rows_of_the_vocabulary_are_unpacked(kind: QuantType):
    packed = random_packed(kind, 9, 256)
    rows = TorchOps(CPU).embed(torch.tensor([8, 0, 8]), packed, kind, torch.bfloat16)
    assert torch.equal(rows, dequantize(packed, kind, torch.bfloat16)[[8, 0, 8]])
