"""Norms, placing and gating against the reference operations."""

from __future__ import annotations

import pytest
import torch

from cortex.engine.kernels.ops import Angles
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton.norms import add_rms_norm, rms_norm
from cortex.engine.kernels.triton.place import place
from cortex.engine.kernels.triton.silu_mul import silu_mul

EPS = 1e-6


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within one rounding of the dtype: the order of sums is the kernel's own."""
    tolerance = 1e-5 if wanted.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 64), (3, 100), (5, 1024), (2, 7)])
def test_norms(device, shape, dtype):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(dtype).to(device)
    delta = torch.randn(shape).to(dtype).to(device)
    weight = torch.randn(shape[1]).to(dtype).to(device)
    reference = TorchOps(device)
    close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    wanted_total, wanted = reference.add_rms_norm(x, delta, weight, EPS)
    total, out = add_rms_norm(x.clone(), delta, weight, EPS)
    assert torch.equal(total, wanted_total)
    close(out, wanted)


def test_a_sum_is_rounded_before_it_is_normalised(device, half):
    x = torch.full((1, 64), 2048.0, dtype=half, device=device)
    delta = torch.full_like(x, 0.75)  # lost: the next number is 2050, or 2064
    weight = torch.ones(64, dtype=half, device=device)
    total, out = add_rms_norm(x, delta, weight, EPS)
    assert total.unique().tolist() == [2048.0]
    assert out.unique().tolist() == [1.0]


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 1, 6), (2, 2, 16), (12, 3, 80), (2, 1, 256)]
)
def test_place(device, heads, kv_heads, dim, with_norms, dtype):
    torch.manual_seed(0)
    tokens, slots = 3, torch.tensor([7, 0, 13], device=device)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype).to(device)
    norms = None
    if with_norms:
        norms = tuple(torch.randn(dim).to(dtype).to(device) for _ in range(2))
    turns = torch.randn(tokens, dim // 2, device=device)
    angles = Angles(turns.cos(), turns.sin())
    wanted_caches = torch.zeros(2, 2, 8, kv_heads, dim, dtype=dtype, device=device)
    caches = wanted_caches.clone()
    wanted = TorchOps(device).place(qkv.clone(), norms, angles, EPS, *wanted_caches, slots)
    q = place(qkv, norms, angles.cos, angles.sin, EPS, *caches, slots)
    assert q.is_contiguous()
    close(q, wanted)
    close(caches, wanted_caches)
    others = [slot for slot in range(16) if slot not in slots.tolist()]
    assert not caches.view(2, 16, kv_heads, dim)[:, others].any()


def test_a_row_without_a_slot_is_not_kept(device):
    qkv = torch.randn(2, 4 * 8, device=device)
    angles = Angles(torch.ones(2, 4, device=device), torch.zeros(2, 4, device=device))
    keys, values = torch.zeros(2, 1, 4, 1, 8, device=device)
    slots = torch.tensor([-1, 2], device=device)
    q = place(qkv, None, angles.cos, angles.sin, EPS, keys, values, slots)
    assert torch.equal(q, qkv.view(2, 4, 8)[:, :2])
    assert torch.equal(keys[0, 2, 0], qkv.view(2, 4, 8)[1, 2])
    assert not keys[0, [0, 1, 3]].any()
    assert not values[0, [0, 1, 3]].any()


@pytest.mark.parametrize(("tokens", "inner"), [(1, 5), (3, 1500), (2, 1024)])
def test_silu_mul(device, tokens, inner, dtype):
    torch.manual_seed(0)
    both = (torch.randn(tokens, 2 * inner) * 4).to(dtype).to(device)
    close(silu_mul(both), TorchOps(device).silu_mul(both))
