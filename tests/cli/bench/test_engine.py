"""`cortex bench engine`: what it refuses, and what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from cortex.cli.main import cli
from cortex.neuron import engine_bench


def bench(*arguments: str):
    return CliRunner().invoke(cli, ["bench", "engine", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "qwen9"), "there is no shape 'qwen9'; known: qwen3-29m"),
        (("--device", "tpu7"), "there is no device 'tpu7'"),
        (("--device", "meta"), "not on meta"),
    ],
)
def test_what_cannot_be_measured_ends_with_2_and_says_why(arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows nothing where there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    result = bench("--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.output


def test_options_reach_the_plan_and_figures_are_printed(monkeypatch):
    asked = []

    def measure(*given):
        asked.append(given[:4])
        given[4]("working")
        return {"rate": 1.5}, iter(["a line", "another"])

    monkeypatch.setattr(engine_bench, "measure", measure)
    result = bench(
        "--device", "cpu", "--batch", "1", "--batch", "4", "--context", "64", "--dtype", "float32",
        "--workload", "latency", "--threads", "2",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "a line\nanother\n" in result.output
    options = {
        "dtype": "float32", "context": 64, "batches": (1, 4), "workloads": ("latency",)
    }  # fmt: skip
    assert asked == [("qwen3-29m", "cpu", options, 2)]
    result = bench("--device", "cpu", "--json")
    assert json.loads(result.stdout) == {"rate": 1.5}
