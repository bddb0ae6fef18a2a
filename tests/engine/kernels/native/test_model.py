"""A whole decoder with the native operations against the same one with torch's."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint
from fakes.packed import random_packed

from cortex.engine.batch import BatchBuilder
from cortex.engine.cache import KVCache
from cortex.engine.kernels.native.ops import NativeOps
from cortex.engine.kernels.ops import Ops
from cortex.engine.kernels.torch_ops import TorchOps
from cortex.engine.load.checkpoint import read_config
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.decoder import Decoder
from cortex.engine.quant.types import BY_NAME, QuantType
from cortex.engine.request import Request, SamplingParams
from cortex.engine.scheduler import Chunk, Plan
from cortex.engine.sequence import Sequence

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}


def decoder(config: ModelConfig, dtype: torch.dtype, ops: Ops, kind: QuantType | None) -> Decoder:
    """The same random weights whatever the operations are."""

    def storage(name: str, shape: tuple[int, int]) -> QuantType | None:
        return kind

    model = Decoder(config, dtype, CPU, ops, storage)
    for lot, finish in model.units():
        for parameter in lot:
            shape, seed = parameter.shape, zlib.crc32(parameter.sources[0][0].encode())
            torch.manual_seed(seed)
            if parameter.quant is not None:
                size = 3 / shape[1] ** 0.5
                parameter.data = random_packed(parameter.quant, *shape, seed=seed, size=size)
            elif len(shape) == 1:
                parameter.data = torch.empty(shape).uniform_(0.5, 1.5).to(dtype)
            else:
                parameter.data = (torch.randn(shape) * 1.5 / shape[1] ** 0.5).to(dtype)
        finish()
    return model


def plans() -> list[Plan]:
    """Two prompts in chunks, then decode of one beside a chunk, then decode of both."""
    one, two = (
        Sequence(
            Request(name, tuple(range(3, 3 + length)), SamplingParams(), 9),
            seed=0,
            limit=200,
            arrival=row,
            row=row,
            blocks=blocks,
        )
        for row, (name, length, blocks) in enumerate([("a", 41, [4, 1]), ("b", 70, [0, 5, 2])])
    )
    for sequence in (one, two):
        sequence.tokens += [7, 8, 9]
    return [
        Plan((), (Chunk(one, 0, 41, True), Chunk(two, 0, 30, False)), ()),
        Plan((Chunk(one, 41, 1, True),), (Chunk(two, 30, 40, True),), ()),
        Plan((Chunk(one, 42, 1, True), Chunk(two, 70, 1, True)), (), ()),
    ]


@torch.inference_mode()
def logits(config: ModelConfig, model: Decoder) -> torch.Tensor:
    """Of every row of every plan."""
    cache = KVCache(config, blocks=6, block_size=32, dtype=model.dtype, device=CPU)
    builder = BatchBuilder(
        rows=2,
        blocks_per_row=3,
        block_size=32,
        null_block=cache.null_block,
        dtype=model.dtype,
        device=CPU,
    )
    return torch.cat([model.logits(model.forward(builder.build(plan), cache)) for plan in plans()])


Changes = dict[str, object]
Compare = Callable[[QuantType | None, torch.dtype, Changes], float]


@pytest.fixture
def compare(library, tmp_path: Path) -> Compare:
    """The relative difference of the logits."""

    def run(kind: QuantType | None, dtype: torch.dtype, changes: Changes) -> float:
        config = read_config(write_checkpoint(tmp_path, **{**SHAPE, **changes}))
        found = logits(config, decoder(config, dtype, NativeOps(library), kind))
        wanted = logits(config, decoder(config, dtype, TorchOps(CPU), kind))
        assert found.shape == wanted.shape
        return float((found - wanted).norm() / wanted.norm())

    return run


CASES: list[Changes] = [
    {},
    {"num_key_value_heads": 1, "head_dim": 64},
    {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
    {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
]


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("name", ["none", "q4_0", "q4_k", "q6_k"])
def test_logits_in_fp32(compare, name, changes):
    assert compare(BY_NAME.get(name), torch.float32, changes) < 1e-5


@pytest.mark.parametrize("changes", CASES)
def test_logits_in_bf16(compare, changes):
    assert compare(None, torch.bfloat16, changes) < 0.02


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl"])
def test_logits_of_packed_weights_in_bf16(compare, name):
    assert compare(BY_NAME[name], torch.bfloat16, {}) < 0.03
