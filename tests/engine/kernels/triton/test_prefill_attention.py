"""Chunks of prompts against the reference attention; torch's flash kernel is stood in for."""

from __future__ import annotations

import pytest
import torch
from fakes.flash import packed_attention

from cortex.engine.batch import BatchBuilder
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton import prefill_attention
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


@pytest.mark.parametrize("window", [None, 5, 20])
@pytest.mark.parametrize(("start", "count"), [(0, 40), (33, 12)])
@pytest.mark.parametrize("neighbours", [False, True])
def test_keys_in_neighbouring_blocks_are_read_where_they_are(
    device, window, start, count, neighbours
):
    torch.manual_seed(0)
    builder, (chunk,) = batch_of([(start, count)], device)
    if neighbours:
        chunk.sequence.blocks = list(range(50, 50 + len(chunk.sequence.blocks)))
    batch = builder.build(Plan((), (chunk,), ()))
    keys, values = torch.randn(2, 121, BLOCK, 2, 16, device=device)
    q = torch.randn(count, 4, 16, device=device)
    chunks = Chunks.of(batch, BLOCK, window)
    assert (chunks.run is not None) == neighbours
    k, _ = gather(keys, values, chunks)
    assert (k.untyped_storage().data_ptr() == keys.untyped_storage().data_ptr()) == neighbours
    wanted = TorchOps(device).attend(q, keys, values, batch, window)
    out = PrefillAttention(packed_attention)(q, keys, values, batch, window)
    torch.testing.assert_close(out.reshape(count, -1), wanted, rtol=1e-4, atol=1e-5)


class Prefers:
    """A tuner that takes the number it was made with, and counts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked = 0

    def choose(self, key, launches):
        self.asked += 1
        for launch in launches:
            launch()
        return self.number


@pytest.mark.parametrize("number", [0, 1])
def test_a_fresh_prompt_goes_to_cudnn_where_that_is_quicker(device, monkeypatch, number):
    torch.manual_seed(0)
    calls = []

    def causal(q, k, v):
        calls.append(len(q))
        wide = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            *wide, is_causal=True, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    monkeypatch.setattr(prefill_attention, "cudnn", causal)
    monkeypatch.setattr(prefill_attention, "_LONG", 16)
    tuner = Prefers(number)
    attention = PrefillAttention(packed_attention, tuner)
    for start, count, taken in ((0, 40, True), (0, 15, False), (33, 20, False)):
        builder, (chunk,) = batch_of([(start, count)], device)
        batch = builder.build(Plan((), (chunk,), ()))
        keys, values = torch.randn(2, 121, BLOCK, 2, 16, device=device)
        q = torch.randn(count, 4, 16, device=device)
        wanted = TorchOps(device).attend(q, keys, values, batch, None)
        calls.clear()
        asked = tuner.asked
        attention.begin_step()
        out = attention(q, keys, values, batch, None)
        torch.testing.assert_close(out.reshape(count, -1), wanted, rtol=1e-4, atol=1e-5)
        assert tuner.asked - asked == taken
        # Tried once, run by the tuner, and run again for the answer where it was chosen.
        assert len(calls) == (2 + number if taken else 0)


def test_where_cudnn_refuses_it_is_not_asked_again(device, monkeypatch):
    def refuse(q, k, v):
        refusals.append(1)
        raise RuntimeError("no engine for this graph")

    refusals: list[int] = []
    monkeypatch.setattr(prefill_attention, "cudnn", refuse)
    monkeypatch.setattr(prefill_attention, "_LONG", 16)
    attention = PrefillAttention(packed_attention, Prefers(1))
    for _ in range(2):
        builder, (chunk,) = batch_of([(0, 40)], device)
        batch = builder.build(Plan((), (chunk,), ()))
        keys, values = torch.randn(2, 121, BLOCK, 2, 16, device=device)
        q = torch.randn(40, 4, 16, device=device)
        wanted = TorchOps(device).attend(q, keys, values, batch, None)
        attention.begin_step()
        out = attention(q, keys, values, batch, None)
        torch.testing.assert_close(out.reshape(40, -1), wanted, rtol=1e-4, atol=1e-5)
    assert len(refusals) == 1
