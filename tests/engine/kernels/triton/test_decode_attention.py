"""Attention over pages against dot products written out, in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from cortex.engine.kernels.triton.decode_attention import DecodeAttention, segments_for
from cortex.engine.kernels.triton.scratch import Scratch


def attended(q, k, v, position, window):
    """One row ``(heads, dim)`` at *position* against ``(length, kv_heads, dim)``, in fp64."""
    low = 0 if window is None else max(0, position + 1 - window)
    k, v = k[low : position + 1].double(), v[low : position + 1].double()
    group = q.shape[0] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("hd,lhd->hl", q.double(), k) / math.sqrt(q.shape[-1])
    return torch.einsum("hl,lhd->hd", scores.softmax(-1), v)


def check(
    device,
    *,
    lengths,
    rows=None,
    heads=4,
    kv_heads=2,
    dim=64,
    block=16,
    window=None,
    dtype=torch.float32,
    multiprocessors=4,
):
    torch.manual_seed(0)
    rows = rows or [1] * len(lengths)
    width = max(-(-length // block) for length in lengths) + 1
    order = torch.randperm(len(lengths) * width)
    tables = order.view(len(lengths), width)
    keys, values = torch.randn(2, len(order), block, kv_heads, dim).to(dtype)
    total = sum(rows)
    q = torch.randn(total, heads, dim).to(dtype)
    firsts = torch.tensor([0, *rows]).cumsum(0)
    wanted = torch.empty(total, heads, dim, dtype=torch.float64)
    for s, length in enumerate(lengths):
        k, v = (x[tables[s]].reshape(-1, kv_heads, dim) for x in (keys, values))
        for i in range(rows[s]):
            row = int(firsts[s]) + i
            wanted[row] = attended(q[row], k, v, length - rows[s] + i, window)
        # What lies behind the last position may be anything.
        last, rest = divmod(length, block)
        for cache in (keys, values):
            cache[tables[s, last], rest:] = float("nan")
            cache[tables[s, last + 1 :]] = float("nan")
    out = torch.full((total, heads * dim), float("nan"), dtype=dtype, device=device)
    DecodeAttention(Scratch(device), multiprocessors)(
        q.to(device),
        keys.to(device),
        values.to(device),
        tables=tables.int().to(device),
        firsts=firsts.int().to(device),
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        queries=max(rows),
        window=window,
        out=out,
    )
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    found = out.cpu().double().view_as(wanted)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(2, 2), (4, 2), (6, 2), (5, 1), (16, 1), (20, 1), (3, 3)]
)
def test_any_group_of_heads(device, heads, kv_heads):
    check(device, lengths=[37], heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("dim", [8, 64, 80, 96, 128, 256, 600])
def test_any_head(device, dim):
    check(device, lengths=[21], dim=dim, heads=2, kv_heads=1)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_any_block(device, block):
    check(device, lengths=[150], block=block, heads=2, kv_heads=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, dtype):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("triton's interpreter multiplies no matrices in bfloat16")
    check(device, lengths=[70, 3], dtype=dtype)


@pytest.mark.parametrize("multiprocessors", [1, 4, 16])
def test_any_number_of_segments(device, multiprocessors):
    check(device, lengths=[1, 16, 17, 130, 64], multiprocessors=multiprocessors)


@pytest.mark.parametrize("window", [1, 5, 16, 17, 40, 1000])
def test_windows(device, window):
    check(device, lengths=[100, 3, 16, 41], window=window)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("multiprocessors", [1, 8])
def test_several_rows_of_a_sequence_see_what_is_before_each(device, window, multiprocessors):
    check(
        device,
        lengths=[50, 4, 33],
        rows=[3, 4, 1],
        heads=10,
        kv_heads=2,
        window=window,
        multiprocessors=multiprocessors,
    )


def test_padding_without_keys_gives_zeros(device):
    keys, values = torch.randn(2, 3, 16, 1, 16, device=device)
    q = torch.randn(2, 2, 16, device=device)
    for multiprocessors in (1, 64):
        out = torch.full((2, 32), float("nan"), device=device)
        DecodeAttention(Scratch(device), multiprocessors)(
            q,
            keys,
            values,
            tables=torch.zeros(2, 2, dtype=torch.int32, device=device),
            firsts=torch.tensor([0, 1, 2], dtype=torch.int32, device=device),
            lengths=torch.tensor([0, 16], dtype=torch.int32, device=device),
            queries=1,
            window=None,
            out=out,
        )
        assert not out[0].any()
        assert out[1].isfinite().all()


def test_segments_fill_the_device_and_no_more():
    assert segments_for(8, 1000, 132) == 64  # one sequence of eight key heads
    assert segments_for(8 * 8, 1000, 132) == 8
    assert segments_for(8 * 256, 1000, 132) == 1
    assert segments_for(8, 3, 132) == 4  # no more than there are tiles
    assert segments_for(1, 1, 132) == 1
