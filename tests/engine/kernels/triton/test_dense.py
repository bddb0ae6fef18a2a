"""Products with dense and with FP8 weights against fp64."""

from __future__ import annotations

import pytest
import torch

from cortex.engine.kernels.triton import fp8_product
from cortex.engine.kernels.triton.dense_product import DenseProduct, Gemv, Library, Matmul
from cortex.engine.kernels.triton.device import Device
from cortex.engine.kernels.triton.fp8_product import Fp8Product


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def error(found, wanted):
    return float((found.cpu().double() - wanted).norm() / wanted.norm())


def product(x, weight, bias):
    y = x.cpu().double() @ weight.cpu().double().T
    return y if bias is None else y + bias.cpu().double()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs"), [(33, 96), (7, 1100), (64, 256), (3, 40)])
def test_one_row(device, half, rows, inputs, with_bias):
    weight = torch.randn(rows, inputs, device=device).to(half)
    bias = torch.randn(rows, device=device).to(half) if with_bias else None
    x = torch.randn(1, inputs, device=device).to(half)
    made = DenseProduct(weight, bias, Device.of(device))
    for choice in (Gemv(4, 4), Gemv(2, 8), Gemv(8, 1), Library()):
        assert error(made.run(x, choice), product(x, weight, bias)) < 1e-2


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 16, 20])
def test_a_few_rows(device, half, tokens, with_bias):
    weight = torch.randn(40, 1100, device=device).to(half)
    bias = torch.randn(40, device=device).to(half) if with_bias else None
    x = torch.randn(tokens, 1100, device=device).to(half)
    made = DenseProduct(weight, bias, Device.of(device))
    for choice in (Matmul(16, 64, 4, 2), Matmul(32, 128, 4, 3)):
        assert error(made.run(x, choice), product(x, weight, bias)) < 1e-2
    assert error(made(x), product(x, weight, bias)) < 1e-2


def test_the_weight_is_not_copied(device, half):
    weight = torch.randn(8, 32, device=device).to(half)
    made = DenseProduct(weight, None, Device.of(device))
    assert made.weight is weight
    assert made.bytes == weight.nbytes


def fp8_weight(rows, inputs, device, *, blocks):
    """Every byte but the two of NaN occurs; in fp64 what they stand for."""
    codes = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    codes[(codes & 127) == 127] = 3
    weight = codes.view(torch.float8_e4m3fn)
    scales = torch.rand(1) if not blocks else torch.rand(-(-rows // 128), -(-inputs // 128))
    wide = scales
    if blocks:
        wide = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :inputs]
    return weight.to(device), scales.to(device), weight.double() * wide.double()


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 33, 70])
def test_fp8(device, half, tokens, with_bias, blocks, monkeypatch):
    monkeypatch.setattr(fp8_product, "_UNPACKED", 128 * 300)  # several pieces
    weight, scales, values = fp8_weight(200, 300, device, blocks=blocks)
    bias = torch.randn(200, device=device).to(half) if with_bias else None
    x = torch.randn(tokens, 300, device=device).to(half) * 0.01
    made = Fp8Product(weight, scales, bias, Device.of(device))
    assert error(made(x), product(x, values, bias)) < 1e-2
    assert made.bytes == 200 * 300 + scales.nbytes


def test_fp8_inputs_are_split(device, half):
    weight, scales, values = fp8_weight(32, 1100, device, blocks=True)
    x = torch.randn(3, 1100, device=device).to(half) * 0.01
    made = Device.of(device)
    assert error(Fp8Product(weight, scales, None, made)(x), product(x, values, None)) < 1e-2
    assert made.scratch.bytes >= 2 * 3 * 32 * 4


def test_scales_of_another_shape_are_refused(device):
    weight = torch.zeros(130, 130, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="scales"):
        Fp8Product(weight, torch.ones(2, 1, device=device), None, Device.of(device))
