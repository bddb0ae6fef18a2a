"""Packed weights against their dequantisation in torch."""

from __future__ import annotations

import attrs
import pytest
import torch
from fakes.packed import random_packed

from cortex.engine.kernels.triton import packed_product
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.packed_product import (
    Gemv,
    Matmul,
    PackedProduct,
    Unpack,
    unpack,
)
from cortex.engine.kernels.triton.planes import LAYOUTS, Planes
from cortex.engine.quant import types
from cortex.engine.quant.dequantize import dequantize

# K-quants' scales are products, rounded to fp16, of which random blocks take differences.
FINE = 2e-3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def error(found, wanted):
    return float((found.cpu().double() - wanted.double()).norm() / wanted.double().norm())


def planes_of(quant, rows, inputs, device, *, size=1.0):
    packed = random_packed(quant, rows, inputs, size=size)
    return Planes.of(packed.to(device), quant), dequantize(packed, quant, torch.float64)


def named(quant):
    return quant.name


def test_every_format_has_a_layout():
    assert set(LAYOUTS) == set(types.TYPES)


@pytest.mark.parametrize("quant", types.TYPES, ids=named)
def test_planes_hold_what_the_blocks_held(device, quant):
    planes, values = planes_of(quant, 5, 512, device)
    out = torch.full((5, 512), float("nan"), device=device)
    unpack(planes, out)
    assert error(out, values) < FINE
    assert planes.bytes == planes.layout.bytes(5, 512)


@pytest.mark.parametrize("quant", [q for q in types.TYPES if not LAYOUTS[q].table], ids=named)
@pytest.mark.parametrize("with_bias", [False, True])
def test_one_row(device, quant, with_bias):
    planes, values = planes_of(quant, 21, 768, device)
    x = torch.randn(1, 768, device=device)
    bias = torch.randn(21, device=device) if with_bias else None
    product = PackedProduct(planes, bias, Device.of(device))
    wanted = x.cpu().double() @ values.double().T
    wanted += 0 if bias is None else bias.cpu()
    for choice in (Gemv(8, 1), Gemv(16, 3)):
        assert error(product.run(x, choice), wanted) < FINE


@pytest.mark.parametrize("quant", types.TYPES, ids=named)
def test_a_few_rows(device, quant):
    planes, values = planes_of(quant, 37, 768, device)
    x = torch.randn(5, 768, device=device)
    product = PackedProduct(planes, None, Device.of(device))
    wanted = x.cpu().double() @ values.double().T
    assert error(product.run(x, Matmul(16, 16, 4, 2)), wanted) < FINE
    assert error(product.run(x, Unpack()), wanted) < FINE


@pytest.mark.parametrize("tokens", [1, 2, 17, 40, 65])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_number_of_rows(device, dtype, tokens, with_bias, monkeypatch):
    monkeypatch.setattr(packed_product, "_UNPACKED", 32 * 256)  # several pieces
    planes, values = planes_of(types.Q4_K, 50, 256, device)
    bias = torch.randn(50, device=device).to(dtype) if with_bias else None
    product = PackedProduct(planes, bias, Device.of(device))
    x = torch.randn(tokens, 256, device=device).to(dtype)
    wanted = x.cpu().double() @ values.double().T
    wanted += 0 if bias is None else bias.cpu()
    assert error(product(x), wanted) < (FINE if dtype == torch.float32 else 1e-2)


def test_many_inputs_are_split(device):
    planes, values = planes_of(types.Q8_0, 16, 2048 + 32, device)
    x = torch.randn(3, 2048 + 32, device=device)
    made = attrs.evolve(Device.of(device), multiprocessors=8)
    product = PackedProduct(planes, None, made)
    wanted = x.cpu().double() @ values.double().T
    assert error(product.run(x, Matmul(16, 16, 4, 2)), wanted) < FINE
    # Several parts were made.
    assert made.scratch.bytes > 3 * 16 * 4


def test_picked_rows(device):
    planes, values = planes_of(types.Q6_K, 40, 256, device)
    picked = torch.tensor([7, 0, 39, 7, 12], device=device)
    out = torch.full((5, 256), float("nan"), device=device)
    unpack(planes, out, picked=picked)
    assert error(out, values[picked.cpu()]) < FINE


@pytest.mark.parametrize("quant", [types.Q4_K, types.Q6_K], ids=named)
@pytest.mark.parametrize(("size", "wide"), [(1e-3, False), (3e7, True)])
def test_scales_beyond_fp16_stay_wide_and_small_ones_are_kept(device, quant, size, wide):
    planes, values = planes_of(quant, 3, 256, device, size=size)
    assert planes.scales.dtype == (torch.float32 if wide else torch.float16)
    x = torch.randn(1, 256, device=device)
    product = PackedProduct(planes, None, Device.of(device))
    assert error(product(x), x.cpu().double() @ values.double().T) < FINE


def test_half_precision(device, half):
    planes, values = planes_of(types.Q5_K, 33, 512, device)
    x = torch.randn(4, 512, device=device).to(half)
    product = PackedProduct(planes, None, Device.of(device))
    for rows in (x[:1], x):
        wanted = rows.cpu().double() @ values.double().T
        assert product(rows).dtype == half
        assert error(product(rows), wanted) < 1e-2
