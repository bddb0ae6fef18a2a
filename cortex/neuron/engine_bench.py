"""`cortex bench engine`, short of the command line: the engine alone, with nobody asking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cortex.engine.bench import report, run
from cortex.engine.bench.shapes import SHAPES
from cortex.neuron.cpu_probe import usable_cores

SHAPE_NAMES = tuple(SHAPES)
# A CPU is measured with what it can do in a minute.
ON_CPU: dict[str, Any] = {
    "dtype": "bfloat16",
    "batches": (1, 4, 8),
    "context": 128,
    "steps": 32,
    "prefills": (512,),
    "requests": 16,
    "least": 16,
    "most": 64,
    "max_batch_tokens": 512,
}


def device_name(asked: str | None) -> str:
    """torch's name of the device *asked* for; the first GPU, else the CPU, where none is.

    ValueError for a name that is none, or a device that is not there.
    """
    if asked is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ValueError(f"there is no device '{asked}': cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device that torch can use")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"an engine runs on cpu or cuda, not on {device.type}")
    return str(device)


def measure(
    shape: str,
    device: str,
    options: dict[str, Any],
    threads: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Iterator[str]]:
    """Run the benchmark; its figures for JSON, and as lines. *options* are those of `BenchPlan`
    that differ from the device's defaults."""
    defaults = {} if device.startswith("cuda") else ON_CPU
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(threads or usable_cores())
    plan = run.BenchPlan(shape, device, **{**defaults, **options})
    figures = run.run(plan, say)
    return figures.as_dict(), report.lines(figures)
