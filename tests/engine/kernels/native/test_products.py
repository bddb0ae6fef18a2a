"""Products with packed weights against fp64 products with what `dequantize` says they are."""

from __future__ import annotations

import pytest
import torch
from fakes.packed import random_packed

from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import BY_NAME, FP8, Q2_K, Q4_0, Q4_K, Q8_0, TYPES, QuantType

NAMES = [kind.name for kind in TYPES]
BF16, FP32 = torch.bfloat16, torch.float32
ROUNDED = 1e-2  # a product's relative error when activations have 8 bits: 0.5 %, and bf16's own
EXACT = 4e-6


@pytest.fixture
def ops(library) -> NativeOps:
    return NativeOps(library)


def wanted(x: torch.Tensor, packed: torch.Tensor, kind: QuantType) -> torch.Tensor:
    return x.double() @ dequantize(packed, kind, FP32).double().T


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (16, 2), (37, 3), (50, 11)])
def test_any_number_of_rows_blocks_and_tokens(ops, name, rows, blocks):
    kind = BY_NAME[name]
    packed = random_packed(kind, rows, blocks * kind.block)
    product = ops.product(packed, kind, None)
    torch.manual_seed(0)
    for tokens in (1, 2, 3, 7, 8, 17):
        x = torch.randn(tokens, blocks * kind.block)
        # One number alone may be the difference of large ones: errors are bounded over many.
        scale = x.norm() * dequantize(packed, kind, FP32).norm() / x.shape[1] ** 0.5
        scale *= 1 + 2 / (tokens * rows) ** 0.5
        exact, rounded = product(x), product(x.to(BF16))
        assert exact.shape == rounded.shape == (tokens, rows)
        assert exact.dtype is FP32
        assert rounded.dtype is BF16
        assert (exact - wanted(x, packed, kind)).norm() < EXACT * scale
        assert (rounded - wanted(x.to(BF16), packed, kind)).norm() < ROUNDED * scale


@pytest.mark.parametrize("tokens", [128, 129, 300])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_many_tokens_are_taken_in_chunks(ops, tokens, dtype):
    packed = random_packed(Q4_K, 40, 512)
    x = torch.randn(tokens, 512).to(dtype)
    found = ops.product(packed, Q4_K, None)(x)
    assert error(found, wanted(x, packed, Q4_K)) < (EXACT if dtype is FP32 else ROUNDED)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_has_the_same_result_whatever_comes_with_it(ops, name):
    kind = BY_NAME[name]
    product = ops.product(random_packed(kind, 33, 2 * kind.block), kind, None)
    x = torch.randn(17, 2 * kind.block).to(BF16)
    together = product(x)
    for token in range(len(x)):
        assert torch.equal(product(x[token : token + 1])[0], together[token])


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_threads_do_not_change_results(ops, dtype):
    product = ops.product(random_packed(Q4_0, 600, 256), Q4_0, None)
    x = torch.randn(140, 256).to(dtype)
    alone = product(x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(product(x), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_bias_is_added_before_rounding(ops, dtype):
    packed = random_packed(Q8_0, 21, 64)
    bias = (torch.randn(21) * 5).to(dtype)
    x = torch.randn(3, 64).to(dtype)
    found = ops.product(packed, Q8_0, bias)(x)
    assert error(found, wanted(x, packed, Q8_0) + bias) < (EXACT if dtype is FP32 else ROUNDED)


def test_a_view_of_rows_is_taken_as_it_is(ops):
    packed = random_packed(Q8_0, 16, 64)
    product = ops.product(packed, Q8_0, None)
    wide = torch.randn(4, 128).to(BF16)
    assert torch.equal(product(wide[:, 64:]), product(wide[:, 64:].contiguous()))


def test_no_tokens_give_no_results(ops):
    product = ops.product(random_packed(Q8_0, 16, 64), Q8_0, None)
    assert product(torch.empty(0, 64, dtype=BF16)).shape == (0, 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_what_is_not_finite_shows_in_its_own_row_alone(ops, value, dtype):
    product = ops.product(random_packed(Q8_0, 16, 64), Q8_0, None)
    x = torch.randn(3, 64).to(dtype)
    x[1, 40] = value
    found = product(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


def test_zero_and_tiny_activations_give_zero(ops):
    product = ops.product(random_packed(Q8_0, 16, 64), Q8_0, None)
    assert not product(torch.zeros(2, 64, dtype=BF16)).any()
    assert product(torch.full((1, 64), 1e-39, dtype=BF16)).abs().max() < 1e-36


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_embed_restores_rows_bit_for_bit(ops, name, dtype):
    kind = BY_NAME[name]
    packed = random_packed(kind, 11, 3 * kind.block)
    tokens = torch.tensor([10, 0, 3, 3, 7, 1, 2, 9, 8, 5])
    found = ops.embed(tokens, packed, kind, dtype)
    assert torch.equal(found, dequantize(packed, kind, FP32)[tokens].to(dtype))


@pytest.mark.parametrize("token", [-1, 11])
def test_embed_refuses_ids_that_are_no_rows(ops, token):
    with pytest.raises(IndexError, match="one of 11"):
        ops.embed(torch.tensor([0, token]), random_packed(Q8_0, 11, 32), Q8_0, BF16)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_known_before_the_weight_is(ops, name):
    kind = BY_NAME[name]
    product = ops.product(random_packed(kind, 40, kind.block * 3), kind, None)
    assert product.bytes == ops.product_bytes(40, kind.block * 3, BF16, kind)
    assert ops.copies(BF16, kind)


def test_the_layout_takes_hardly_more_than_the_format(ops):
    for kind in TYPES:
        ours = ops.product_bytes(1024, 1024, BF16, kind)
        # A scale of Q2_K has 4 bits in the file and 8 here.
        bound = 1.25 if kind is Q2_K else 1.07
        assert 1 <= ours / (1024 * kind.row_bytes(1024)) < bound


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_formats_without_kernels_go_to_torch(ops, dtype):
    torch_ops = TorchOps(torch.device("cpu"))
    values = torch.randn(128, 2, 128).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.full((128, 2, 1), 0.25).view(torch.uint8)
    packed = torch.cat((values, scales), -1).view(128, 264)
    x = torch.randn(3, 256).to(dtype)
    wanted = torch_ops.product(packed, FP8, None)
    assert torch.equal(ops.product(packed, FP8, None)(x), wanted(x))
    assert ops.copies(dtype, FP8) == torch_ops.copies(dtype, FP8)
    size = ops.product_bytes(128, 256, dtype, FP8)
    assert size == torch_ops.product_bytes(128, 256, dtype, FP8)
    tokens = torch.tensor([5, 0])
    found = ops.embed(tokens, packed, FP8, dtype)
    assert torch.equal(found, torch_ops.embed(tokens, packed, FP8, dtype))


@pytest.fixture
def dense_ops(ops) -> NativeOps:
    if not ops._has(BF16, None):
        pytest.skip("this variant leaves dense weights to torch")
    return ops


@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (16, 32), (37, 33), (50, 127), (33, 1024)])
def test_dense_weights_in_bf16(dense_ops, rows, inputs):
    torch.manual_seed(rows)
    weight, bias = torch.randn(rows, inputs).to(BF16), torch.randn(rows).to(BF16)
    plain, biased = (dense_ops.product(weight, None, b) for b in (None, bias))
    assert plain.bytes == dense_ops.product_bytes(rows, inputs, BF16, None)
    for tokens in (0, 1, 2, 3, 7, 8, 17, 129):
        x = torch.randn(tokens, inputs).to(BF16)
        exact = x.double() @ weight.double().T
        for found, wanted in ((plain(x), exact), (biased(x), exact + bias)):
            assert found.shape == wanted.shape
            bound = 2**-8 * wanted.abs() + 1e-5 * inputs
            assert ((found.double() - wanted).abs() <= bound).all()


def test_a_token_has_the_same_dense_result_whatever_comes_with_it(dense_ops):
    product = dense_ops.product(torch.randn(40, 300).to(BF16), None, None)
    x = torch.randn(17, 300).to(BF16)
    together = product(x)
    for token in range(len(x)):
        assert torch.equal(product(x[token : token + 1])[0], together[token])
