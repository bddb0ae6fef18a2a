"""Kernels are chosen by the device, and by what works on it."""

from __future__ import annotations

import builtins
import logging

import pytest
import torch

from cortex.engine.kernels import choice
from cortex.engine.kernels.choice import choose
from cortex.engine.kernels.torch_ops import TorchOps

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _untried():
    """Nothing was tried out yet, nor is it after the test."""
    choice._triton_works.cache_clear()
    yield
    choice._triton_works.cache_clear()


def test_a_cpu_gets_torch(caplog):
    assert isinstance(choose(torch.device("cpu")), TorchOps)
    assert not caplog.records


def test_without_triton_torch_serves_with_one_warning(monkeypatch, caplog):
    def refuse(name, *args, **kwargs):
        if name.startswith("cortex.engine.kernels.triton"):
            raise ImportError("No module named 'triton'")
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with caplog.at_level(logging.WARNING, "cortex.engine"):
        for _ in range(3):
            assert isinstance(choose(CUDA), TorchOps)
    assert [record.getMessage() for record in caplog.records] == [
        "no Triton kernels on cuda, steps will be slow: No module named 'triton'"
    ]
