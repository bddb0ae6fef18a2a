"""Unpacked weights against the format's own package, bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from fakes.packed import random_packed, set_halves

from cortex.engine.quant import dequantize as module
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import Q4_K, Q8_0, TYPES, QuantType


def oracle(packed: torch.Tensor, kind: QuantType) -> torch.Tensor:
    with np.errstate(all="ignore"):
        values = gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType(kind.gguf_id))
    return torch.from_numpy(np.ascontiguousarray(values))


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_random_blocks_are_the_same_bits(kind: QuantType):
    packed = random_packed(kind, 37, 768)
    assert_same_bits(dequantize(packed, kind, torch.float32), oracle(packed, kind))


@pytest.mark.parametrize("value", [0.0, -0.0, 6e-8, -6e-8, 3e-5, -1.0, 65504.0])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_scales_of_every_size(kind: QuantType, value: float):
    """Nought, the smallest denormal, negative ones, the largest."""
    packed = random_packed(kind, 3, 512)
    set_halves(packed, kind, value)
    assert_same_bits(dequantize(packed, kind, torch.float32), oracle(packed, kind))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_rows_in_chunks_are_the_same(kind: QuantType, monkeypatch: pytest.MonkeyPatch):
    packed = random_packed(kind, 11, 512)
    whole = dequantize(packed, kind, torch.float32)
    monkeypatch.setattr(module, "CHUNK", 3 * 512 + 7)
    assert torch.equal(dequantize(packed, kind, torch.float32), whole)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_no_rows_and_a_part_of_the_rows(kind: QuantType):
    packed = random_packed(kind, 6, 256)
    assert dequantize(packed[:0], kind, torch.float32).shape == (0, 256)
    part = dequantize(packed[[4, 1]], kind, torch.float32)
    assert torch.equal(part, dequantize(packed, kind, torch.float32)[[4, 1]])


def test_bf16_is_the_fp32_value_rounded():
    packed = random_packed(Q4_K, 5, 512)
    rounded = dequantize(packed, Q4_K, torch.float32).bfloat16()
    assert torch.equal(dequantize(packed, Q4_K, torch.bfloat16), rounded)


def test_rows_that_are_no_blocks_are_refused():
    with pytest.raises(ValueError, match="rows of 33 are not whole q8_0 blocks"):
        dequantize(torch.zeros(2, 33, dtype=torch.uint8), Q8_0, torch.float32)
    with pytest.raises(ValueError, match=r"int8 rows of 34"):
        dequantize(torch.zeros(2, 34, dtype=torch.int8), Q8_0, torch.float32)
