"""Each layer against the slow, obvious one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.engine.layers import attention as attention_module
from cortex.engine.layers.attention import Span, prompt_mask, span_masks
from cortex.engine.layers.norm import rms_norm
from cortex.engine.layers.rotary import Rotary, turn, widen
from cortex.engine.models.config import RopeConfig


def test_the_norm_is_computed_in_fp32():
    x = (torch.randn(4, 64) * 100).bfloat16()
    weight = torch.rand(64).bfloat16()
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), wanted.bfloat16() * weight)


def test_a_turn_is_a_rotation_of_pairs_and_depends_on_distance_alone():
    rotary = Rotary(RopeConfig(theta=10000.0), 8)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        angles = rotary.angles(torch.tensor([position]))
        return turn(x, *widen(angles.cos, angles.sin))

    def score(i: int, j: int) -> float:
        return float((turned(q, i) * turned(k, j)).sum())

    assert score(5, 3) == pytest.approx(score(102, 100), abs=1e-4)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-6)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
    one = turned(q, 1)
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
