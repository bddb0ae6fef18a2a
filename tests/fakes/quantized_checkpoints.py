"""Tiny quantised checkpoints, each weight packed number by number: slow and plainly right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from fakes.checkpoints import tensors_of, write_checkpoint
from safetensors.torch import save_file

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each four bits of a word, from the lowest
GPTQ_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)


def word(nibbles: list[int]) -> int:
    """Eight numbers of four bits, the first lowest, as a signed 32-bit integer."""
    value = sum(nibble << 4 * place for place, nibble in enumerate(nibbles))
    return value - (1 << 32) if value >= 1 << 31 else value


def along_columns(numbers: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """``(rows, n)`` to int32 ``(rows, n / 8)``."""
    rows = [
        [word([row[at + i] for i in order]) for at in range(0, len(row), 8)]
        for row in numbers.tolist()
    ]
    return torch.tensor(rows, dtype=torch.int32)


@attrs.define(eq=False)
class Int4:
    """One weight: ``q (inputs, outputs)``, ``zeros`` and ``scales (groups, outputs)``, and each
    input's group."""

    q: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor

    def dense(self) -> torch.Tensor:
        """``(outputs, inputs)`` fp32, from fp16 scales."""
        scales = self.scales.float()[self.groups]
        return ((self.q - self.zeros[self.groups]).float() * scales).t().contiguous()

    def awq(self) -> dict[str, torch.Tensor]:
        return {
            "qweight": along_columns(self.q, AWQ_ORDER),
            "qzeros": along_columns(self.zeros, AWQ_ORDER),
            "scales": self.scales,
        }

    def gptq(self, offset: int = 1) -> dict[str, torch.Tensor]:
        """Zero points are stored less *offset*."""
        return {
            "qweight": along_columns(self.q.t(), GPTQ_ORDER).t().contiguous(),
            "qzeros": along_columns((self.zeros - offset) % 16, GPTQ_ORDER),
            "scales": self.scales,
            "g_idx": self.groups.int(),
        }


def random_int4(
    outputs: int, inputs: int, group: int, generator: torch.Generator, *, shuffled: bool = False
) -> Int4:
    """Scales have seven bits of mantissa, so that a product with a zero point is exact in fp16."""
    groups = torch.arange(inputs) // group
    if shuffled:
        groups = groups[torch.randperm(inputs, generator=generator)]
    shape = (inputs // group, outputs)
    scales = torch.randint(64, 128, shape, generator=generator) * 2.0**-12
    return Int4(
        q=torch.randint(0, 16, (inputs, outputs), generator=generator),
        zeros=torch.randint(0, 16, shape, generator=generator),
        scales=scales.half(),
        groups=groups,
    )


# A module's name and its shape, to the tensors that are stored and the weight that they stand for.
Pack = Callable[[str, tuple[int, int]], tuple[dict[str, torch.Tensor], torch.Tensor]]


def write_quantized(
    directory: Path, quantization: dict[str, Any], pack: Pack, **changes: object
) -> tuple[Path, Path]:
    """Two checkpoints of one model: its projections packed, and dense in fp32."""
    options = {**SHAPE, **changes}
    dense = write_checkpoint(directory / "dense", **options)
    plain = tensors_of(dense)
    stored = dict(plain)
    for name in [name for name in plain if name.endswith("_proj.weight")]:
        module = name.removesuffix(".weight")
        rows, inputs = plain[name].shape
        parts, plain[name] = pack(module, (rows, inputs))
        del stored[name]
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(plain, dense / "model.safetensors")
    packed = directory / "packed"
    packed.mkdir()
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = quantization
    (packed / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in stored.items()}, packed / "model.safetensors")
    return packed, dense
