"""Norms, gating and placing against the operations in torch."""

from __future__ import annotations

import pytest
import torch

from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.ops import Angles
from cortex.engine.kernels.torch_ops import TorchOps

TORCH = TorchOps(torch.device("cpu"))
DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 7, 16, 33, 64, 100, 1024]
EPS = 1e-6


@pytest.fixture
def ops(library) -> NativeOps:
    return NativeOps(library)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for the order of sums; in bf16 that turns an odd last bit, or two in a chain."""
    assert found.dtype is wanted.dtype
    if found.dtype is torch.float32:
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-6)
        return
    torch.testing.assert_close(found, wanted, rtol=2**-6, atol=1e-5)
    assert (found == wanted).float().mean() > 0.97


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(ops, width, dtype):
    torch.manual_seed(width)
    x, weight = (torch.randn(5, width) * 9).to(dtype), torch.randn(width).to(dtype)
    kept = x.clone()
    close(ops.rms_norm(x, weight, EPS), TORCH.rms_norm(x, weight, EPS))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm(ops, width, dtype):
    torch.manual_seed(width)
    x, delta = (torch.randn(40, width).to(dtype) * scale for scale in (9, 1))
    weight = torch.randn(width).to(dtype)
    total, normed = TORCH.add_rms_norm(x, delta, weight, EPS)
    found = ops.add_rms_norm(x.clone(), delta, weight, EPS)
    assert torch.equal(found[0], total)
    close(found[1], normed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", WIDTHS)
def test_silu_mul(ops, inner, dtype):
    torch.manual_seed(inner)
    both = (torch.randn(40, 2 * inner) * 8).to(dtype)
    close(ops.silu_mul(both), TORCH.silu_mul(both))


def test_silu_goes_to_its_limits(ops):
    gate = torch.tensor([-1e4, -200, -90, -88, -87, -1e-30, 0, 87, 88, 90, 1e4, 3e38, -3e38])
    both = torch.cat((gate.repeat(3), torch.ones(39)))[None]
    found = ops.silu_mul(both)
    torch.testing.assert_close(found, TORCH.silu_mul(both), rtol=3e-6, atol=1e-35)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_in_its_row(ops, dtype):
    x = torch.randn(3, 48).to(dtype)
    x[1, 20] = float("nan")
    weight = torch.ones(48).to(dtype)
    zero = torch.zeros(3, 48).to(dtype)
    for out in (ops.rms_norm(x, weight, EPS), ops.add_rms_norm(x.clone(), zero, weight, EPS)[1]):
        assert out.isnan().all(-1).tolist() == [False, True, False]
        assert out[[0, 2]].isfinite().all()
    silu = ops.silu_mul(x)
    assert silu.isnan().sum() == 1
    assert silu[1, 20].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 1, 6), (2, 2, 16), (7, 1, 80), (4, 2, 128)]
)
def test_place(ops, heads, kv_heads, dim, with_norms, dtype):
    torch.manual_seed(dim)
    tokens = 9
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    norms = tuple(torch.randn(2, dim).to(dtype)) if with_norms else None
    turns = torch.rand(tokens, dim // 2) * 6
    angles = Angles(turns.cos(), turns.sin())
    slots = torch.randperm(4 * 8)[:tokens]
    shape = (2, 4, 8, kv_heads, dim)
    (keys, values), (ours, our_values) = torch.zeros(2, *shape).to(dtype)
    wanted = TORCH.place(qkv.clone(), norms, angles, EPS, keys, values, slots)
    q = ops.place(qkv, norms, angles, EPS, ours, our_values, slots)
    close(q, wanted)
    close(ours, keys)
    assert torch.equal(our_values, values)


def test_what_the_kernels_do_not_take_goes_to_torch(ops):
    x, weight = torch.randn(4, 32, dtype=torch.float64), torch.randn(32, dtype=torch.float64)
    assert torch.equal(ops.rms_norm(x, weight, EPS), TORCH.rms_norm(x, weight, EPS))
    assert torch.equal(ops.add_rms_norm(x, x, weight, EPS)[0], 2 * x)
    strided = torch.randn(4, 128)[:, :64]
    assert torch.equal(ops.silu_mul(strided), TORCH.silu_mul(strided))
    dense = torch.randn(6, 32)
    assert torch.equal(ops.embed(torch.tensor([2, 5]), dense, None, torch.float32), dense[[2, 5]])
    product = ops.product(dense, None, None)
    torch.testing.assert_close(product(torch.eye(32)), dense.T.contiguous())
