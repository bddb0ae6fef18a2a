"""Each layer against the slow, obvious one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.layers import attention as attention_module
from cortex.engine.layers.attention import Span, prompt_mask, span_masks
from cortex.engine.layers.linear import Linear
from cortex.engine.layers.norm import rms_norm
from cortex.engine.layers.parameter import Parameter
from cortex.engine.layers.rotary import Rotary
from cortex.engine.models.config import RopeConfig


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    made = Linear(
        Parameter.of("w", tuple(weight.shape), weight.dtype),
        None if bias is None else Parameter.of("b", tuple(bias.shape), bias.dtype),
    )
    made.weight.data = weight.clone()
    if made.bias is not None:
        made.bias.data = bias
    made.finish()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 32), (1, 7), (33, 65), (256, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_linear_is_the_plain_one(dtype, shape, with_bias):
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if with_bias else None
    made = linear(weight, bias)
    for rows in (1, 2, 5, 33):
        x = torch.randn(rows, shape[1]).to(dtype)
        torch.testing.assert_close(made(x), F.linear(x, weight, bias))


def test_where_packing_is_refused_the_plain_weight_stays(monkeypatch):
    def refuse(*args: object) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    weight = torch.randn(4, 3)
    made = linear(weight, None)
    assert not made.packed
    x = torch.randn(2, 3)
    torch.testing.assert_close(made(x), x @ weight.T)


def test_memory_that_runs_out_while_packing_is_not_swallowed(monkeypatch):
    def refuse(*args: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    with pytest.raises(RuntimeError, match="memory"):
        linear(torch.randn(4, 3), None)


def test_the_norm_is_computed_in_fp32():
    x = (torch.randn(4, 64) * 100).bfloat16()
    weight = torch.rand(64).bfloat16()
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), wanted.bfloat16() * weight)


def test_a_turn_is_a_rotation_of_pairs_and_depends_on_distance_alone():
    rotary = Rotary(RopeConfig(theta=10000.0), 8)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(i: int, j: int) -> float:
        turned_q = rotary.turn(q, *rotary.angles(torch.tensor([i])))
        turned_k = rotary.turn(k, *rotary.angles(torch.tensor([j])))
        return float((turned_q * turned_k).sum())

    assert score(5, 3) == pytest.approx(score(102, 100), abs=1e-4)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-6)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
    one = rotary.turn(q, *rotary.angles(torch.tensor([1])))
    expected = q[0, 0, 0] * math.cos(1) - q[0, 0, 4] * math.sin(1)
    assert float(one[0, 0, 0]) == pytest.approx(float(expected), abs=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 20),
    count=st.integers(1, 20),
    window=st.one_of(st.none(), st.integers(1, 30)),
)
def test_a_prompts_mask_shows_what_came_before_within_the_window(start, count, window):
    length = start + count
    mask = prompt_mask(range(start, length), length, window, torch.empty(0))
    for i in range(count):
        for j in range(length):
            seen = j <= start + i and (window is None or start + i - j < window)
            assert (float(mask[i, j]) == 0.0) == seen


def test_masks_of_a_long_chunk_are_made_in_parts(monkeypatch):
    monkeypatch.setattr(attention_module, "MASK_ELEMENTS", 40)
    keys = attention_module.Keys(torch.empty(0), 1, 1, 20)
    span = Span(0, 13, 7, keys, 5)
    parts = span_masks(span, torch.empty(0))
    assert [len(part) for part in parts] == [2, 2, 2, 2, 2, 2, 1]
    whole = prompt_mask(range(7, 20), 20, 5, torch.empty(0))
    assert torch.equal(torch.cat(parts), whole)
    plain = Span(0, 20, 0, keys, None)
    assert span_masks(plain, torch.empty(0)) == [None]
