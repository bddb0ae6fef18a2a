"""The benchmark's arithmetic, and that it runs whole. What it measures decides nothing here."""

from __future__ import annotations

import json

import pytest
import torch

from cortex.engine.bench import report, run, shapes
from cortex.engine.bench.ceilings import Ceilings
from cortex.engine.bench.latency import Traffic, prompts
from cortex.engine.bench.throughput import _floor
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.models.decoder import Decoder

TINY = {
    **shapes.SHAPES["qwen3-29m"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 97,
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_matrices_of_a_shape_are_those_of_its_decoder(name):
    config = shapes.config_of(name)
    meta = torch.device("meta")
    model = Decoder(config, torch.bfloat16, meta, TorchOps(meta))
    assert model.matrix_bytes == 2 * shapes.matrix_elements(config)


def test_qwen3_8b_streams_what_the_study_says():
    """15.14 GB a step and 147,456 B of KV a token; 3.56 ms at 4.3 TB/s and a context of 1 k."""
    config = shapes.config_of("qwen3-8b")
    traffic = Traffic(config, 2 * shapes.matrix_elements(config), 147_456)
    assert traffic.matrix_bytes == pytest.approx(15.14e9, rel=0.001)
    ceilings = Ceilings(4.3e12, 790e12)
    assert traffic.decode_floor(1, 1000, ceilings) == pytest.approx(3.56e-3, rel=0.003)
    assert traffic.decode_floor(256, 1000, ceilings) == pytest.approx(13.9e-3, rel=0.02)
    assert 2048 / traffic.prefill_floor(2048, ceilings) == pytest.approx(54.5e3, rel=0.02)


def test_the_floor_of_a_workload_is_that_of_its_rounds():
    config = shapes.config_of("qwen3-29m")
    traffic = Traffic(config, 1000, 10)
    ceilings = Ceilings(1e6, 1e12)
    alone = _floor([(10, 4)], 8, traffic, ceilings)
    wanted = traffic.prefill_floor(10, ceilings) + 4 * traffic.decode_floor(1, 12, ceilings)
    assert alone == pytest.approx(wanted)
    one_by_one = _floor([(10, 4)] * 3, 1, traffic, ceilings)
    assert one_by_one == pytest.approx(3 * alone)
    assert _floor([(10, 4)] * 3, 3, traffic, ceilings) < one_by_one


def test_prompts_share_no_prefix():
    made = list(prompts(20, 8, 1000))
    assert len({ids[:2] for ids in made}) == 20


def test_it_runs_whole_and_says_what_it_found(monkeypatch):
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(run, "measure", lambda device, dtype: Ceilings(1e10, 1e11))
    plan = run.BenchPlan(
        "tiny",
        "cpu",
        dtype="float32",
        batches=(1, 3),
        context=40,
        steps=12,
        prefills=(33,),
        requests=5,
        least=4,
        most=9,
        max_batch_tokens=64,
    )
    said: list[str] = []
    found = run.run(plan, said.append)
    assert [figure.batch for figure in found.decodes] == [1, 3]
    assert found.throughput is not None
    assert found.throughput.requests == 5
    assert 5 * 4 <= found.throughput.output_tokens <= 5 * 9
    assert "throughput of 5 requests" in said
    figures = json.loads(json.dumps(found.as_dict()))
    assert figures["decodes"][1]["rate"] == pytest.approx(found.decodes[1].rate)
    assert figures["throughput"]["share"] == pytest.approx(found.throughput.share)
    text = "\n".join(report.lines(found))
    assert "tiny, float32, cpu" in text
    assert "5 requests" in text


def test_a_workload_that_is_not_asked_for_is_left_out(monkeypatch):
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(run, "measure", lambda device, dtype: Ceilings(1e10, 1e11))
    plan = run.BenchPlan(
        "tiny", "cpu", "float32", ("latency",), (2,), context=20, steps=8, prefills=(16,)
    )
    found = run.run(plan)
    assert found.throughput is None
    assert len(found.decodes) == len(found.prefills) == 1
