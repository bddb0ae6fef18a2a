"""Which errors mean a lost device."""

from __future__ import annotations

import errno

import pytest
import torch

from cortex.engine.faults import is_device_fault, is_out_of_memory

FAULTS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]
WELL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"),
    ValueError("CUDA error: this is a message of somebody else's"),
    IndexError("index out of range in self"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_a_lost_device_is_recognised_however_it_is_wrapped(error: BaseException):
    assert is_device_fault(error)
    assert is_device_fault(wrapped(error))
    during = ValueError("cleaning up failed too")
    during.__context__ = error
    assert is_device_fault(during)
    assert is_device_fault(BaseExceptionGroup("several", [ValueError("x"), wrapped(error)]))


@pytest.mark.parametrize("error", WELL, ids=lambda e: f"{type(e).__name__}: {e}")
def test_other_errors_leave_the_device_well(error: BaseException):
    assert not is_device_fault(error)
    assert not is_device_fault(wrapped(error))


def test_a_chain_with_a_loop_ends():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_device_fault(one)


def test_memory_that_ran_out_is_told_apart():
    assert [is_out_of_memory(error) for error in WELL[:5]] == [True] * 5
    assert not any(is_out_of_memory(error) for error in FAULTS)
    assert is_out_of_memory(MemoryError())


def test_a_failed_allocation_of_torch_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def wrapped(error: BaseException) -> Exception:
    outer = RuntimeError("a step failed")
    outer.__cause__ = error
    return outer
