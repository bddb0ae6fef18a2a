"""FP8 weights, their scales, and the rows that they are packed into."""

from __future__ import annotations

import pytest
import torch

from cortex.engine.quant import fp8
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.quantize import quantize
from cortex.engine.quant.types import BY_GGUF_ID, BY_NAME, FP8


def gaussian(rows: int, inputs: int) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("rows", [128, 300])
def test_packed_rows_are_weights_and_scales_and_come_apart_again(rows: int):
    weight = gaussian(rows, 256).mul(1000).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // 128), 2)
    packed = fp8.join(weight, scales)
    assert packed.shape == (rows, FP8.row_bytes(256)) == (rows, 264)
    expected = torch.stack(
        [weight[r, c].float() * scales[r // 128, c // 128] for r in (0, rows - 1) for c in (0, 255)]
    )
    values = dequantize(packed, FP8, torch.float32)
    assert torch.equal(values[[0, 0, -1, -1], [0, 255, 0, 255]], expected)
    again, factors = fp8.split(packed)
    assert torch.equal(again.view(torch.uint8), weight.view(torch.uint8))
    assert torch.equal(factors, scales)


def test_stacked_rows_keep_their_scales_where_they_begin_with_a_block():
    parts = [fp8.join(gaussian(n, 128).to(torch.float8_e4m3fn), torch.rand(n // 128, 1))
             for n in (128, 256)]  # fmt: skip
    assert torch.equal(fp8.split(torch.cat(parts))[1][1:], fp8.split(parts[1])[1])
    with pytest.raises(ValueError, match="scales of their own"):
        fp8.split(torch.cat(parts)[64:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_weights_are_within_a_step_of_e4m3(dtype: torch.dtype):
    """Three bits of mantissa: half a step is 2^-4 of the value, or 2^-10 times the scale."""
    weight = gaussian(300, 384).to(dtype)
    weight[5, 7] = 3.0
    weight[128:256, 128:256] = 0
    packed = quantize(weight, FP8)
    values, scales = dequantize(packed, FP8, torch.float32), fp8.split(packed)[1]
    fine = fp8.expand(scales, 300).repeat_interleave(128, 1) * 2.0**-10
    assert ((values - weight).abs() <= torch.maximum(weight.abs() * 2.0**-4, fine) * 1.001).all()
    assert values[5, 7] == pytest.approx(3.0)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        block = weight[128 * row : 128 * row + 128, 128 * column : 128 * column + 128]
        assert scales[row, column] == block.float().abs().max() / 448


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float):
    weight = gaussian(128, 128)
    weight[3, 4] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, FP8)
    with pytest.raises(ValueError, match="whole fp8 blocks"):
        quantize(weight[:, :64], FP8)


def test_it_is_none_of_ggufs_types():
    assert "fp8" not in BY_NAME
    assert FP8 not in BY_GGUF_ID.values()


def test_a_cpu_has_no_fp8():
    assert not fp8.has_fp8(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "has"), [((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_has_it_from_compute_capability_8_9_on(monkeypatch, capability, has):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fp8.has_fp8(torch.device("cuda:0")) is has
