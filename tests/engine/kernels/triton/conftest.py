"""Without a GPU the kernels are interpreted, on a CPU: triton decides when it is first imported.

With one the same tests run on it.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:  # there are wheels for Linux only
    collect_ignore_glob = ["test_*.py"]
elif not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported before it could be told to interpret")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def half(device: torch.device) -> torch.dtype:
    """The 16-bit dtype to test with: the interpreter cuts bfloat16 off instead of rounding it."""
    return torch.float16 if device.type == "cpu" else torch.bfloat16


@pytest.fixture(params=["single", "half"])
def dtype(request: pytest.FixtureRequest, half: torch.dtype) -> torch.dtype:
    return torch.float32 if request.param == "single" else half
