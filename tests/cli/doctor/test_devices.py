"""Driver and torch beside each other, and a look that may hang."""

from __future__ import annotations

import json
import sys
import time

import pytest
from fakes.nvml import FakeGpu, FakeNvml

from cortex.cli.doctor import device_look, devices
from cortex.cli.doctor.report import FAILED, OK, WARNING, Judge
from cortex.neuron import host_look
from cortex.neuron.devices import ProbeFailed

JUDGE = Judge("neuron")
GPU = {"name": "H200", "uuid": "GPU-1", "total_mb": 1000, "free_mb": 900, "users": []}
NVML = {"driver": "575.1", "cuda": 12_090, "gpus": [GPU]}
TORCH = {"version": "2.13.0+cu126", "cuda": "12.6", "count": 1}


def judged(seen, environ=None):
    return list(devices.driver_and_torch(JUDGE, seen, environ or {}))


def test_a_driver_and_a_torch_that_match_are_ok():
    assert [each.state for each in judged({"nvml": NVML, "torch": TORCH})] == [OK, OK]


@pytest.mark.parametrize(
    ("nvml", "torch", "word"),
    [
        (NVML, {**TORCH, "cuda": None, "count": 0}, "without CUDA"),
        (NVML, {**TORCH, "cuda": "13.0"}, "is for CUDA 13.0"),
        (NVML, {**TORCH, "count": 0}, "sees 0 GPU"),
        (NVML, {**TORCH, "error": "GPU 0: CUDA error: unspecified"}, "unspecified"),
        (NVML, None, "not installed"),
        ({"error": "Driver/library version mismatch", "expected": False}, TORCH, "mismatch"),
    ],
)
def test_what_does_not_match_is_a_failure_with_advice(nvml, torch, word):
    (bad,) = (each for each in judged({"nvml": nvml, "torch": torch}) if each.state == FAILED)
    assert word in bad.detail
    assert bad.advice


def test_an_older_minor_version_of_cuda_will_do():
    torch = {**TORCH, "cuda": "12.9"}
    assert judged({"nvml": {**NVML, "cuda": 12_040}, "torch": torch})[-1].state == OK


def test_a_host_without_a_gpu_is_ok_and_hidden_gpus_are_told():
    none = {"error": "nvidia-ml-py is not installed", "expected": True}
    cpu = {"version": "2.13.0+cpu", "cuda": None, "count": 0}
    assert [each.state for each in judged({"nvml": none, "torch": cpu})] == [OK]
    found = judged({"nvml": NVML, "torch": cpu}, {"CUDA_VISIBLE_DEVICES": ""})
    assert [each.state for each in found] == [OK, WARNING, OK]


def test_a_torch_that_hangs_is_a_failure_and_what_nvml_said_is_known():
    found = judged({"nvml": NVML, "error": "no answer within 90 s"})
    assert [each.state for each in found] == [OK, FAILED]
    assert "no answer" in found[1].detail


def test_memory_says_who_has_it():
    used = {**GPU, "free_mb": 100, "users": [{"pid": 7, "mb": 800}]}
    (finding,) = devices.memory(JUDGE, {"nvml": {"gpus": [used]}}, {}, "")
    assert (finding.state, "pid 7 800 MiB" in finding.detail) == (OK, True)
    (finding,) = devices.memory(JUDGE, {"nvml": {"gpus": [{**used, "users": []}]}}, {}, "")
    assert finding.state == WARNING
    meminfo = "MemTotal:  2048 kB\nHugePages_Total: 0\nMemAvailable: 1024 kB\n"
    (finding,) = devices.memory(JUDGE, {}, {}, meminfo)
    assert finding.detail == "1 of 2 MiB available"


def test_no_compiler_is_a_warning(tmp_path):
    assert devices.compiler(JUDGE, {"PATH": str(tmp_path)}).state == WARNING
    tool = tmp_path / "gcc"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert devices.compiler(JUDGE, {"PATH": str(tmp_path)}).detail == str(tool)


def child(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_childs_lines_are_put_together():
    lines = f"print({json.dumps(NVML)!r}.join(['{{\"nvml\": ', '}}']))\nprint('not json')"
    assert device_look.look(child(lines), 30) == {"nvml": NVML}


def test_a_child_that_hangs_is_killed_and_what_it_said_is_kept():
    text = "import time\nprint('{\"nvml\": {}}', flush=True)\ntime.sleep(600)"
    began = time.monotonic()
    seen = device_look.look(child(text), 2)
    assert time.monotonic() - began < 30
    assert seen == {"nvml": {}, "error": "no answer within 2 s"}


def test_a_child_that_fails_says_so():
    assert "ended with 3" in device_look.look(child("raise SystemExit(3)"), 30)["error"]


def test_nvml_is_read_and_its_errors_are_told():
    nvml = FakeNvml([FakeGpu("GPU-1", users={7: 5 << 20, 8: None})])
    facts = host_look.nvml_facts(lambda: nvml)
    assert facts["gpus"][0]["name"] == "NVIDIA H200"
    assert facts["gpus"][0]["total_mb"] == 141 * 1024
    assert facts["gpus"][0]["users"] == [{"pid": 7, "mb": 5}, {"pid": 8, "mb": None}]
    mismatch = FakeNvml(init_error=FakeNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert host_look.nvml_facts(lambda: mismatch)["expected"] is False

    def absent():
        raise ProbeFailed("not installed", expected=True)

    assert host_look.nvml_facts(absent) == {"error": "not installed", "expected": True}
