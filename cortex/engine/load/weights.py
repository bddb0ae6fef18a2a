"""Checkpoint tensors into a model that was built on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs
import torch

from cortex.engine.layers.parameter import Parameter
from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.safetensors import DTYPES, SafetensorsFile
from cortex.engine.load.tensors import Tensors
from cortex.engine.models.decoder import Decoder
from cortex.errors import CheckpointError, LoadCancelled, UnsupportedModel, clip

Progress = Callable[[str, int, int], None]
Cancelled = Callable[[], bool]

# Buffers that old checkpoints saved along, derived from the config here; and the head that tied
# checkpoints sometimes repeat.
IGNORED = re.compile(r"(.*\.rotary_emb\.inv_freq|.*\.masked_bias|.*\.attn\.bias)")


def check_names(model: Decoder, tensors: Tensors) -> None:
    """Every tensor of *model* is there with its shape, and none is there that it does not know.

    Raises CheckpointError, or UnsupportedModel for a dtype that is not computed with.
    """
    known: set[str] = set()
    for parameter in model.parameters():
        for name, rows in parameter.sources:
            known.add(name)
            _, entry = tensors.find(name)
            shape = (rows, *parameter.shape[1:])
            if entry.shape != shape:
                raise CheckpointError(
                    f"tensor '{clip(name)}' has shape {clip(list(entry.shape), 60)}; "
                    f"the config asks for {list(shape)}"
                )
            if entry.dtype not in DTYPES:
                raise UnsupportedModel(f"tensor '{clip(name)}' is {entry.dtype}, not a float")
    if model.config.tied_embeddings:
        known.add("lm_head.weight")
    unknown = sorted(name for name in tensors.names - known if not IGNORED.fullmatch(name))
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


def load_weights(model: Decoder, tensors: Tensors, progress: Progress, cancelled: Cancelled) -> int:
    """Read every parameter and lay it out for the device; the bytes that they take.

    Weight by weight: beside the model there is one weight twice at most. When this raises, the
    model is of no use and holds what was loaded until it is dropped.
    """
    check_names(model, tensors)
    total = sum(
        tensors.find(name)[1].size
        for parameter in model.parameters()
        for name, _ in parameter.sources
    )
    tally = _Tally(progress, cancelled, total)
    tally(0)
    for lot, finish in model.units():
        for parameter in lot:
            _fill(parameter, tensors, model.device, tally)
        finish()
    return model.bytes


def _fill(parameter: Parameter, tensors: Tensors, device: torch.device, tally: _Tally) -> None:
    data = torch.empty(parameter.stored_shape, dtype=parameter.stored_dtype, device=device)
    row = 0
    for name, rows in parameter.sources:
        file, entry = tensors.find(name)
        _read(file, entry, data[row : row + rows], tally)
        row += rows
    parameter.data = data


def _read(file: SafetensorsFile, entry: TensorEntry, target: torch.Tensor, tally: _Tally) -> None:
    """Read the tensor to where it belongs, by way of a copy where dtype or device differ."""
    dtype = DTYPES[entry.dtype]
    if target.dtype == dtype and target.device.type == "cpu":
        file.read_into(entry, target, tally)
        return
    staging = torch.empty(entry.shape, dtype=dtype)
    file.read_into(entry, staging, tally)
    target.copy_(staging)
