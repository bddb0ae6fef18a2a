"""Checkpoint tensors into a model that was built on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs
import torch

from cortex.engine.layers.parameter import Parameter
from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.safetensors import DTYPES
from cortex.engine.load.source import Source
from cortex.engine.models.decoder import Decoder
from cortex.engine.quant.dequantize import dequantize
from cortex.engine.quant.types import TYPES
from cortex.errors import CheckpointError, LoadCancelled, UnsupportedModel, clip

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]

# Buffers that old checkpoints saved along, derived from the config here; and the head that tied
# checkpoints sometimes repeat.
IGNORED = re.compile(r"(.*\.rotary_emb\.inv_freq|.*\.masked_bias|.*\.attn\.bias)")


def check_names(model: Decoder, source: Source) -> None:
    """Every tensor of *model* is there with its shape, and none is there that it does not know.

    Raises CheckpointError, or UnsupportedModel for a dtype that is not computed with.
    """
    known: set[str] = set()
    for parameter in model.parameters():
        for name, rows in parameter.sources:
            known.add(name)
            entry = source.find(name)
            shape = (rows, *parameter.shape[1:])
            if entry.shape != shape:
                raise CheckpointError(
                    f"tensor '{clip(name)}' has shape {clip(list(entry.shape), 60)}; "
                    f"the config asks for {list(shape)}"
                )
            if entry.dtype not in DTYPES and entry.quant is None:
                packed = ", ".join(kind.name.upper() for kind in TYPES)
                raise UnsupportedModel(
                    f"tensor '{clip(name)}' is {entry.dtype}, not a float and none of {packed}"
                )
    if model.config.tied_embeddings:
        known.add("lm_head.weight")
    unknown = sorted(name for name in source.names - known if not IGNORED.fullmatch(name))
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors are not part of {model.config.architecture}, "
            f"such as '{clip(unknown[0])}'"
        )


@attrs.define
class _Tally:
    """Bytes read, told to *progress*; raises LoadCancelled once *cancelled* is true."""

    progress: Progress
    cancelled: Cancelled
    total: int
    done: int = 0

    def __call__(self, read: int) -> None:
        self.done += read
        self.progress("weights", self.done, self.total)
        if self.cancelled():
            raise LoadCancelled


def load_weights(model: Decoder, source: Source, progress: Progress, cancelled: Cancelled) -> int:
    """Read every parameter and lay it out for the device; the bytes that they take.

    Weight by weight: beside the model there is one weight twice at most. When this raises, the
    model is of no use and holds what was loaded until it is dropped.
    """
    check_names(model, source)
    total = sum(
        source.find(name).size for parameter in model.parameters() for name, _ in parameter.sources
    )
    tally = _Tally(progress, cancelled, total)
    tally(0)
    for lot, finish in model.units():
        for parameter in lot:
            _fill(parameter, source, model.device, tally)
        finish()
    return model.bytes


def _fill(parameter: Parameter, source: Source, device: torch.device, tally: _Tally) -> None:
    data = torch.empty(parameter.stored_shape, dtype=parameter.stored_dtype, device=device)
    row = 0
    for name, rows in parameter.sources:
        _read(source, name, data[row : row + rows], tally)
        row += rows
    parameter.data = data


def _read(source: Source, name: str, target: torch.Tensor, tally: _Tally) -> None:
    """Read the tensor to where it belongs, by way of a copy where form or device differ."""
    entry = source.find(name)
    shape, dtype = _stored(entry)
    if target.dtype == dtype and target.shape == shape and target.device.type == "cpu":
        source.read(name, target, tally)
        return
    staging = torch.empty(shape, dtype=dtype)
    source.read(name, staging, tally)
    if entry.quant is not None and target.dtype != torch.uint8:
        staging = dequantize(staging.view(-1, shape[-1]), entry.quant, torch.float32)
    target.copy_(staging.view(target.shape))


def _stored(entry: TensorEntry) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the tensor as its file has it."""
    if entry.quant is None:
        return entry.shape, DTYPES[entry.dtype]
    return (*entry.shape[:-1], entry.quant.row_bytes(entry.shape[-1])), torch.uint8
