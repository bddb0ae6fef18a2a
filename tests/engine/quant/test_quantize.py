"""Quantised weights against the format's own package, and against slower searches."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from cortex.engine.quant import quantize as module
from cortex.engine.quant import search
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.quantize import QUANTIZABLE, quantize
from cortex.engine.quant.types import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, QuantType

NEAREST = (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1)
# RMS error over RMS, on Gaussian weights. No code of so many bits a weight can be below 2^-bits:
# 0.3 % at 8.5, 1.1 % at 6.56, 2.2 % at 5.5, 4.4 % at 4.5.
ERRORS = {Q8_0: 0.0057, Q6_K: 0.0178, Q5_K: 0.0375, Q4_K: 0.074}


def name_of(kind: QuantType) -> str:
    return kind.name


def gaussian(rows: int, inputs: int, scale: float = 0.02, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * scale


def theirs(weight: torch.Tensor, kind: QuantType) -> torch.Tensor:
    packed = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType(kind.gguf_id))
    return torch.from_numpy(np.ascontiguousarray(packed))


def unpacked_by_theirs(packed: torch.Tensor, kind: QuantType) -> torch.Tensor:
    values = gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType(kind.gguf_id))
    return torch.from_numpy(np.ascontiguousarray(values))


def error(kind: QuantType, weight: torch.Tensor) -> float:
    """The RMS error over the RMS of *weight*, by the package's own reading of the bytes."""
    difference = unpacked_by_theirs(quantize(weight, kind), kind) - weight
    return float(difference.norm() / weight.norm())


@pytest.mark.parametrize("scale", [1e-4, 0.02, 300.0])
@pytest.mark.parametrize("kind", NEAREST, ids=name_of)
def test_nearest_formats_are_the_same_bytes(kind: QuantType, scale: float):
    weight = gaussian(33, 320, scale)
    assert torch.equal(quantize(weight, kind), theirs(weight, kind))


@pytest.mark.parametrize("kind", NEAREST, ids=name_of)
def test_ties_zeros_and_extremes_of_both_signs_are_the_same_bytes(kind: QuantType):
    """Multiples of a half of the step, so that rounding meets exact halves."""
    integers = torch.randint(-254, 255, (64, 64), generator=torch.Generator().manual_seed(1))
    weight = integers.float() / 2
    weight[:32, 0] = 127
    weight[32:, 32] = -127
    weight[5] = 0
    weight[6, :32] = -0.0
    weight[7] = 127
    weight[8] = -8
    weight[8, 1::2] = 8
    assert torch.equal(quantize(weight, kind), theirs(weight, kind))


@pytest.mark.parametrize("kind", ERRORS, ids=name_of)
def test_errors_on_gaussian_weights_are_near_the_least(kind: QuantType):
    assert error(kind, gaussian(64, 1024)) < ERRORS[kind]


@pytest.mark.parametrize(("kind", "levels"), [(Q4_K, 15), (Q5_K, 31)])
def test_a_search_is_better_than_rounding_between_the_extremes(kind: QuantType, levels: int):
    """Even where that may keep its scales in fp32, with heavy tails even more so."""
    for tails in (1, 3):
        weight = gaussian(16, 1024, 1.0) ** tails
        x = weight.view(-1, 32)
        low = x.amin(1, keepdim=True)
        step = (x.amax(1, keepdim=True) - low) / levels
        plain = float((((x - low) / step).round() * step + low - x).norm() / x.norm())
        assert error(kind, weight) < plain * (0.96 if tails == 1 else 0.9)


def weighted_error(x: torch.Tensor, scale: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    weight = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
    q = ((x + least) / scale).round().clamp(0, 15)
    return (weight * (scale * q - least - x).square()).sum(-1)


def test_the_search_comes_near_an_exhaustive_one():
    x = gaussian(48, 32, 1.0, seed=3)
    found = weighted_error(x, *search._fit(x, 15))
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    best = torch.full_like(found, torch.inf)
    for shrink in torch.linspace(0.6, 1.05, 46).tolist():
        for start in torch.linspace(0.8, 1.1, 31).tolist():
            scale = (high - low) * shrink / 15
            best = torch.minimum(best, weighted_error(x, scale, -low * start))
    assert float(found.sum()) < 1.08 * float(best.sum())


def test_signed_scales_come_near_an_exhaustive_search():
    x = gaussian(48, 16, 1.0, seed=4)

    def squares(scale: torch.Tensor) -> torch.Tensor:
        return (scale * (x / scale).round().clamp(-32, 31) - x).square().sum(-1)

    found = squares(search._symmetric(x, -32))
    extreme = x.abs().amax(-1, keepdim=True)
    steps = torch.linspace(28, 34, 600).tolist()
    best = torch.stack([squares(sign * extreme / step) for step in steps for sign in (1, -1)])
    assert float(found.sum()) < 1.12 * float(best.amin(0).sum())


@pytest.mark.parametrize("kind", [Q4_K, Q5_K, Q6_K], ids=name_of)
def test_weights_that_the_format_can_hold_come_back(kind: QuantType):
    """Every level occurs in every sub-block, with a scale and minimum of their own."""
    levels = {Q4_K: 15, Q5_K: 31, Q6_K: 63}[kind]
    sizes, count = (32, 8) if kind is not Q6_K else (16, 16)
    generator = torch.Generator().manual_seed(2)
    q = torch.randint(0, levels + 1, (12, count, sizes), generator=generator)
    q[:, :, 0], q[:, :, 1] = 0, levels
    scale = torch.randint(32, 64, (12, count, 1), generator=generator)
    scale[:, 0] = 63
    if kind is Q6_K:
        scale[:, 0] = -128
        weight = (q - 32) * scale * 2.0**-12
    else:
        least = torch.randint(1, 64, (12, count, 1), generator=generator)
        least[:, 0] = 63
        weight = q * scale * 2.0**-10 - least * 2.0**-8
    weight = weight.float().view(12, 256)
    assert error(kind, weight) < 1e-3


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=name_of)
def test_uneven_blocks_are_read_as_they_were_meant(kind: QuantType):
    """Nothing, one value, only positive, only negative, one outlier; as small as fp16 allows."""
    weight = gaussian(8, 256, 1.0)
    weight[0] = 0
    weight[1] = 0.5
    weight[2] = weight[2].abs() + 3
    weight[3] = -weight[3].abs() - 3
    weight[4] = -0.5
    weight[5, 77] = 50
    weight[6] *= 1e-30
    weight[7] *= 1e-42
    packed = quantize(weight, kind)
    values = dequantize(packed, kind, torch.float32)
    assert torch.equal(values, unpacked_by_theirs(packed, kind))
    assert torch.isfinite(values).all()
    assert values[0].eq(0).all()
    for row in (1, 4):
        assert float((values[row] - weight[row]).abs().max()) < 0.02
    bound = {Q8_0: 0.01, Q6_K: 0.03, Q5_K: 0.03, Q5_1: 0.03}.get(kind, 0.1)
    for row in (2, 3):
        assert float((values[row] - weight[row]).norm() / weight[row].norm()) < bound
    assert abs(float(values[5, 77]) - 50) < 4
    assert values[6:].abs().max() < 1e-6


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=name_of)
def test_neither_chunks_nor_threads_change_a_byte(kind: QuantType, monkeypatch):
    weight = gaussian(37, 512)
    whole = quantize(weight, kind)
    for rows in (weight[:1], weight[11:30]):
        start = 0 if len(rows) == 1 else 11
        assert torch.equal(quantize(rows, kind), whole[start : start + len(rows)])
    before = torch.get_num_threads()
    for chunk, threads in ((256, 1), (768, 2), (5120, 3), (1 << 20, 4)):
        monkeypatch.setattr(module, "CPU_CHUNK", chunk)
        assert torch.equal(quantize(weight, kind, threads=threads), whole)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_taken_at_their_value(dtype: torch.dtype):
    weight = gaussian(3, 256).to(dtype)
    for kind in (Q8_0, Q4_K):
        assert torch.equal(quantize(weight, kind), quantize(weight.float(), kind))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e9, 1e30])
@pytest.mark.parametrize("kind", QUANTIZABLE, ids=name_of)
@pytest.mark.parametrize("threads", [1, 2])
def test_weights_that_no_scale_can_hold_are_refused(
    kind: QuantType, value: float, threads: int, monkeypatch
):
    monkeypatch.setattr(module, "CPU_CHUNK", 1024)
    weight = gaussian(16, 256)
    weight[13, 99] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, kind, threads=threads)


def test_rows_of_half_a_block_are_refused():
    with pytest.raises(ValueError, match="not whole q4_k blocks"):
        quantize(gaussian(2, 128), Q4_K)


def test_no_rows():
    assert quantize(torch.empty(0, 256), Q6_K).shape == (0, 210)
