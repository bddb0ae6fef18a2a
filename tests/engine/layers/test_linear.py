"""A Linear against F.linear, whatever its pieces and however its device lays them out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.torch_products import BlockedProduct
from cortex.engine.layers.linear import Linear
from cortex.engine.layers.parameter import Parameter

CPU = torch.device("cpu")


def linear(weights: list[torch.Tensor], bias: torch.Tensor | None) -> Linear:
    made = Linear(
        TorchOps(CPU),
        [Parameter.of(f"w{i}", tuple(w.shape), w.dtype) for i, w in enumerate(weights)],
        None if bias is None else Parameter.of("b", tuple(bias.shape), bias.dtype),
    )
    promised = made.bytes
    for parameter, weight in zip(made.weights, weights, strict=True):
        parameter.data = weight.clone()
    if made.bias is not None:
        made.bias.data = bias
    made.finish()
    assert made.bytes == promised == sum(t.nbytes for t in (*weights, bias) if t is not None)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 32), (1, 7), (33, 65), (256, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_blocked_linear_is_the_plain_one(dtype, shape, with_bias):
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if with_bias else None
    made = linear([weight], bias)
    for rows in (1, 2, 5, 33):
        x = torch.randn(rows, shape[1]).to(dtype)
        torch.testing.assert_close(made(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("with_bias", [False, True])
def test_pieces_are_stacked_with_their_parts_of_the_bias(with_bias):
    torch.manual_seed(1)
    weights = [torch.randn(rows, 24) for rows in (5, 16, 3)]
    bias = torch.randn(24) if with_bias else None
    x = torch.randn(7, 24)
    torch.testing.assert_close(linear(weights, bias)(x), F.linear(x, torch.cat(weights), bias))


def test_what_was_laid_out_lets_the_plain_weight_go():
    made = linear([torch.randn(48, 32)], None)
    assert isinstance(made.products[0], BlockedProduct)
    assert made.weights[0].data.numel() == 0


def test_where_blocks_are_refused_the_plain_weight_stays(monkeypatch):
    def refuse(*args: object) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    weight = torch.randn(4, 3)
    x = torch.randn(2, 3)
    torch.testing.assert_close(linear([weight], None)(x), x @ weight.T)


def test_memory_that_runs_out_while_laying_out_is_not_swallowed(monkeypatch):
    def refuse(*args: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    with pytest.raises(RuntimeError, match="memory"):
        linear([torch.randn(4, 3)], None)
