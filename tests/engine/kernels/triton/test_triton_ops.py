"""The whole set: a model decodes with it as with the reference."""

from __future__ import annotations

import pytest
import torch
from fakes.checkpoints import write_checkpoint
from fakes.flash import packed_attention
from fakes.packed import random_packed
from fakes.requests import ask, drain, tokens_of
from fakes.static_ops import EagerCapture

from cortex.engine.kernels import triton_ops
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton.prefill_attention import PrefillAttention
from cortex.engine.kernels.triton_ops import TritonOps
from cortex.engine.load import checkpoint
from cortex.engine.quant import types
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.fp8 import quantize
from cortex.engine.request import SamplingParams

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the engine runs on the CPU")


def work(engine):
    """Two prompts in chunks beside a sequence in decode, greedy and drawn."""
    engine.add(ask("early", [1, 2, 3], max_tokens=8, sampling=SamplingParams(temperature=0)))
    engine.step()
    engine.add(ask("long", range(40), max_tokens=3, sampling=SamplingParams(temperature=0)))
    sampling = SamplingParams(temperature=1.2, top_k=9, top_p=0.9, seed=4)
    engine.add(ask("drawn", [7] * 5, max_tokens=4, sampling=sampling))
    return {name: tokens_of(events) for name, events in drain(engine).items()}


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("captured", [False, True])
def test_a_model_gives_the_same_tokens(open_tiny, tmp_path, monkeypatch, captured, window):
    directory = write_checkpoint(tmp_path, sliding_window=window, use_sliding_window=bool(window))
    options = {"directory": directory, "max_batch": 3, "max_batch_tokens": 24}
    wanted = work(open_tiny(**options))
    monkeypatch.setattr(checkpoint, "choose", TritonOps)
    # In fp32, which torch's kernel does not take, on a CPU, where there is none.
    monkeypatch.setattr(triton_ops, "can_flash", lambda *args: True)
    monkeypatch.setattr(
        triton_ops, "PrefillAttention", lambda tuner: PrefillAttention(packed_attention)
    )
    capture = EagerCapture()
    if captured:
        monkeypatch.setattr(checkpoint, "capture_for", lambda device, ops: capture)
    assert work(open_tiny(**options)) == wanted
    assert bool(capture.replayed) == captured


@interpreted
def test_heads_that_torchs_kernel_does_not_take_are_attended_by_the_reference(
    open_tiny, monkeypatch
):
    engine = open_tiny()
    engine.add(ask("a", range(20), max_tokens=2, sampling=SamplingParams(temperature=0)))
    wanted = drain(engine)
    monkeypatch.setattr(checkpoint, "choose", TritonOps)
    engine = open_tiny()
    engine.add(ask("a", range(20), max_tokens=2, sampling=SamplingParams(temperature=0)))
    assert tokens_of(drain(engine)["a"]) == tokens_of(wanted["a"])


@pytest.mark.parametrize("quant", types.TYPES, ids=lambda quant: quant.name)
def test_packed_weights_are_copied_and_take_what_was_foretold(device, quant):
    ops = TritonOps(device)
    weight = random_packed(quant, 9, 512).to(device)
    assert ops.copies(torch.bfloat16, quant)
    product = ops.product(weight, quant, None)
    assert product.bytes == ops.product_bytes(9, 512, torch.bfloat16, quant)
    x = torch.randn(1, 512, device=device)
    wanted = TorchOps(device).product(weight, quant, None)(x)
    torch.testing.assert_close(product(x), wanted, rtol=1e-2, atol=3e-2)


@pytest.mark.parametrize("rows", [128, 200])
def test_fp8_weights_take_what_was_foretold(device, half, rows):
    ops = TritonOps(device)
    weight = quantize(torch.randn(rows, 256)).to(device)
    assert ops.copies(half, types.FP8)
    product = ops.product(weight, types.FP8, None)
    assert product.bytes == ops.product_bytes(rows, 256, half, types.FP8)
    x = torch.randn(3, 256, device=device).to(half)
    wanted = x.float() @ dequantize(weight, types.FP8, torch.float32).T
    torch.testing.assert_close(product(x).float(), wanted, rtol=2e-2, atol=1e-1)


def test_fp8_rows_whose_blocks_are_not_whole_are_multiplied_by_the_reference(device):
    parts = [quantize(torch.randn(100, 256) * scale) for scale in (1, 50)]
    weight = torch.cat(parts).to(device)
    x = torch.randn(2, 256, device=device)
    found = TritonOps(device).product(weight, types.FP8, None)(x)
    wanted = x @ dequantize(weight, types.FP8, torch.float32).T
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)


def test_dense_weights_are_not_copied(device):
    ops = TritonOps(device)
    weight = torch.randn(9, 32, device=device)
    assert not ops.copies(torch.float32, None)
    product = ops.product(weight, None, None)
    assert product.bytes == ops.product_bytes(9, 32, torch.float32, None) == weight.nbytes
    x = torch.randn(3, 32, device=device)
    torch.testing.assert_close(product(x), x @ weight.T)


def test_scratch_is_counted_and_kept(device):
    ops = TritonOps(device)
    assert ops.scratch_bytes == 0
    logits = torch.randn(2, 90, device=device)
    column = torch.zeros(2, device=device)
    params = triton_ops.DrawParams(
        temperature=column,
        top_k=column.int(),
        top_p=column + 1,
        min_p=column,
        uniform=column.double(),
    )
    assert torch.equal(ops.draw(logits, params), logits.argmax(-1))
    kept = ops.scratch_bytes
    assert kept > 0
    ops.draw(logits, params)
    assert ops.scratch_bytes == kept
