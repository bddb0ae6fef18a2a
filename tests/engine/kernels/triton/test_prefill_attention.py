"""Chunks of prompts against the reference attention; torch's flash kernel is stood in for."""

from __future__ import annotations

import pytest
import torch
from fakes.flash import packed_attention

from cortex.engine.batch import BatchBuilder
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton.prefill_attention import (
    Chunks,
    PrefillAttention,
    can_flash,
    flash,
    gather,
)
from cortex.engine.request import Request, SamplingParams
from cortex.engine.scheduler import Chunk, Plan
from cortex.engine.sequence import Sequence

BLOCK = 16


def batch_of(chunks, device):
    """Chunks ``(start, count)`` of prompts, after two sequences in decode."""
    builder = BatchBuilder(
        rows=8,
        blocks_per_row=16,
        block_size=BLOCK,
        null_block=120,
        dtype=torch.float32,
        device=device,
    )
    order = iter(torch.randperm(120).tolist())
    made = []
    for row, (start, count) in enumerate(chunks):
        length = start + count
        request = Request(str(row), tuple(range(length)), SamplingParams(), max_tokens=4)
        sequence = Sequence(request, seed=0, limit=length + 4, arrival=row)
        sequence.row = row
        sequence.blocks = [next(order) for _ in range(-(-length // BLOCK))]
        made.append(Chunk(sequence, start, count, draws=True))
    return builder, made


@pytest.mark.parametrize("window", [None, 5, 16, 20, 1000])
def test_chunks_see_what_the_reference_sees(device, window):
    torch.manual_seed(0)
    builder, chunks = batch_of([(40, 1), (7, 1), (0, 19), (33, 12), (16, 16)], device)
    batch = builder.build(Plan(tuple(chunks[:2]), tuple(chunks[2:]), ()))
    keys, values = torch.randn(2, 121, BLOCK, 2, 16, device=device)
    q = torch.randn(len(batch.tokens), 4, 16, device=device)
    wanted = TorchOps(device).attend(q, keys, values, batch, window)
    attention = PrefillAttention(packed_attention)
    for _ in range(2):  # the second layer uses what the first has made
        out = attention(q[2:], keys, values, batch, window)
        torch.testing.assert_close(out.reshape(len(out), -1), wanted[2:], rtol=1e-4, atol=1e-5)


def test_gathered_are_the_blocks_that_are_seen(device):
    builder, chunks = batch_of([(0, 19), (40, 5)], device)
    batch = builder.build(Plan((), tuple(chunks), ()))
    keys = torch.randn(121, BLOCK, 1, 8, device=device)
    made = Chunks.of(batch, BLOCK, window=6)
    k, v = gather(keys, -keys, made)
    first, second = (c.sequence.blocks for c in chunks)
    wanted = torch.cat(
        (keys[first].reshape(-1, 1, 8)[:19], keys[second[2:]].reshape(-1, 1, 8)[:13])
    )
    assert torch.equal(k, wanted)
    assert torch.equal(v, -wanted)


def test_what_torch_takes():
    assert can_flash(torch.bfloat16, 128, None)
    assert can_flash(torch.bfloat16, 96, 100)
    assert not can_flash(torch.float32, 128, None)
    assert not can_flash(torch.bfloat16, 512, None)
    assert not can_flash(torch.bfloat16, 6, None)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 20])
def test_torchs_kernel_is_what_stands_in_for_it(device, window):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    queries = torch.tensor([0, 19, 49], dtype=torch.int32, device=device)
    keys = torch.tensor([0, 19, 100], dtype=torch.int32, device=device)
    q = torch.randn(49, 4, 64, device=device)
    k, v = torch.randn(2, 100, 2, 64, device=device)
    wanted = packed_attention(q, k, v, queries, keys, 30, 81, window)
    found = flash(*(x.bfloat16() for x in (q, k, v)), queries, keys, 30, 81, window)
    torch.testing.assert_close(found.float(), wanted, rtol=3e-2, atol=3e-2)
