"""Kernels that are wrong are found out, and then torch's operations serve."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from cortex.engine.kernels import choice
from cortex.engine.kernels.choice import choose
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.kernels.triton import self_test
from cortex.engine.kernels.triton_ops import TritonOps


@pytest.fixture(autouse=True)
def _untried():
    choice._triton_works.cache_clear()
    yield
    choice._triton_works.cache_clear()


def broken(x, delta, weight, eps):
    return x + delta, x


def test_what_works_passes(device):
    self_test.check(device)


def test_a_wrong_result_is_found(device, monkeypatch):
    monkeypatch.setattr(self_test, "add_rms_norm", broken)
    with pytest.raises(ArithmeticError):
        self_test.check(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a device that there is")
def test_a_gpu_gets_kernels_that_pass_and_torch_otherwise(monkeypatch, caplog):
    tried = self_test.check
    monkeypatch.setattr(self_test, "check", lambda device: tried(torch.device("cpu")))
    properties = SimpleNamespace(multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with caplog.at_level(logging.WARNING, "cortex.engine"):
        assert isinstance(choose(torch.device("cuda", 0)), TritonOps)
        assert not caplog.records
        monkeypatch.setattr(self_test, "add_rms_norm", broken)
        assert isinstance(choose(torch.device("cuda", 0)), TritonOps)  # tried out once
        for _ in range(2):
            assert isinstance(choose(torch.device("cuda", 1)), TorchOps)
    assert len(caplog.records) == 1
