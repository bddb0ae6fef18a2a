"""AWQ and GPTQ checkpoints as a source of a decoder's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Set

import attrs
import torch

from cortex.engine.load.adapted import AdaptedSource
from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.int4 import Int4Weight, along_inputs, along_outputs
from cortex.engine.load.safetensors import DTYPES
from cortex.engine.load.scheme import Int4Scheme
from cortex.engine.load.source import Source
from cortex.engine.quant.quantize import quantize
from cortex.engine.quant.types import Q4_1, Q8_0, QuantType
from cortex.errors import CheckpointError, clip

PARTS = ("qweight", "qzeros", "scales", "g_idx")
WORD = 8  # weights in 32 bits
MIDDLE = 8  # the zero point where none are stored
SLICE = 256  # outputs that are unpacked at a time


@attrs.frozen
class _Layout:
    """Of one weight: its shape, the inputs of a group, and which of `PARTS` there are."""

    outputs: int
    inputs: int
    group: int
    parts: tuple[str, ...]
    size: int  # bytes of the parts
    kind: QuantType | None  # what it becomes; None is fp32


class Int4Source(AdaptedSource):
    """*source*, with four-bit weights in the place of what they are stored as.

    Groups of neighbours become Q4_1, which holds them as they are. Others, and those of no multiple
    of 32 inputs, are unpacked and rounded to Q8_0, or left in fp32 where rows are no whole blocks.
    """

    def __init__(self, source: Source, scheme: Int4Scheme) -> None:
        super().__init__(source)
        self._scheme = scheme
        self._modules = {
            name.removesuffix(".qweight") for name in source.names if name.endswith(".qweight")
        }
        self._layouts: dict[str, _Layout] = {}
        self._names = self._decoder_names()

    @property
    def names(self) -> Set[str]:
        return self._names

    @property
    def elements(self) -> int:
        return sum(math.prod(self.find(name).shape) for name in self._names)

    def find(self, name: str) -> TensorEntry:
        layout = self._layout(name)
        if layout is None:
            return self._source.find(name)
        dtype = "F32" if layout.kind is None else layout.kind.name.upper()
        return TensorEntry(
            name, dtype, (layout.outputs, layout.inputs), 0, layout.size, layout.kind
        )

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        layout = self._layout(name)
        return self._source.storage(name, shape) if layout is None else layout.kind

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        layout = self._layout(name)
        if layout is None:
            self._source.read(name, target, check)
            return
        module = name.removesuffix(".weight")
        stored = {part: self._part(f"{module}.{part}", check) for part in layout.parts}
        groups = self._groups(name, layout, stored.get("g_idx"))
        for first in range(0, layout.outputs, SLICE):
            weight = self._unpack(stored, groups, first, min(first + SLICE, layout.outputs))
            try:
                if layout.kind == Q4_1:
                    rows = weight.packed()
                elif layout.kind is not None:
                    rows = quantize(weight.dense(), layout.kind)
                else:
                    rows = weight.dense()
            except ValueError as error:
                raise CheckpointError(f"tensor '{clip(name)}': {error}") from error
            target[first : first + SLICE] = rows
            check(0)

    def _decoder_names(self) -> Set[str]:
        names = set(self._source.names)
        for module in self._modules:
            if f"{module}.weight" in names:
                raise CheckpointError(f"'{clip(module)}' has a plain weight and a quantised one")
            names -= {f"{module}.{part}" for part in PARTS}
            # GPTQ's tools write a bias for every linear layer, and zeros where it has none.
            bias = f"{module}.bias"
            if bias in names and self._scheme.method == "gptq" and self._is_zero(bias):
                names.remove(bias)
        return names | {f"{module}.weight" for module in self._modules}

    def _is_zero(self, name: str) -> bool:
        entry = self._source.find(name)
        small = len(entry.shape) == 1 and entry.dtype in DTYPES
        return small and not bool(self._part(name, lambda read: None).any())

    def _part(self, name: str, check: Callable[[int], None]) -> torch.Tensor:
        entry = self._source.find(name)
        data = torch.empty(entry.shape, dtype=DTYPES.get(entry.dtype, torch.int32))
        self._source.read(name, data, check)
        return data

    def _layout(self, name: str) -> _Layout | None:
        """Of the quantised weight *name*, checked against the headers; None for other tensors."""
        module = name.removesuffix(".weight")
        if module == name or module not in self._modules:
            return None
        if name not in self._layouts:
            self._layouts[name] = self._checked_layout(module)
        return self._layouts[name]

    def _checked_layout(self, module: str) -> _Layout:
        awq = self._scheme.method == "awq"
        qweight = self._source.find(f"{module}.qweight")
        if len(qweight.shape) != 2:
            raise self._bad(qweight, "has not two dimensions")
        rows, columns = qweight.shape
        inputs, outputs = (rows, columns * WORD) if awq else (rows * WORD, columns)
        group = self._scheme.group or inputs
        if not inputs or not outputs or outputs % WORD or inputs % group:
            raise self._bad(qweight, f"does not fit groups of {group} inputs")
        groups = inputs // group
        expected: dict[str, tuple[str | None, tuple[int, ...]]] = {
            "qweight": ("I32", qweight.shape),
            "qzeros": ("I32", (groups, outputs // WORD)),
            "scales": (None, (groups, outputs)),
        }
        if self._scheme.symmetric and f"{module}.qzeros" not in self._source.names:
            del expected["qzeros"]
        if not awq and (self._scheme.act_order or f"{module}.g_idx" in self._source.names):
            expected["g_idx"] = ("I32", (inputs,))
        size = 0
        for part, (dtype, shape) in expected.items():
            entry = self._source.find(f"{module}.{part}")
            if entry.shape != shape:
                raise self._bad(entry, f"does not belong to {outputs} x {inputs} weights")
            if entry.dtype != dtype if dtype else entry.dtype not in DTYPES:
                raise self._bad(entry, f"is {entry.dtype}, not {dtype or 'a float'}")
            size += entry.size
        return _Layout(outputs, inputs, group, tuple(expected), size, self._kind(inputs, group))

    def _kind(self, inputs: int, group: int) -> QuantType | None:
        if inputs % Q4_1.block:
            return None
        return Q8_0 if self._scheme.act_order or group % Q4_1.block else Q4_1

    def _groups(self, name: str, layout: _Layout, stated: torch.Tensor | None) -> torch.Tensor:
        """The group of each input, int64."""
        in_order = torch.arange(layout.inputs) // layout.group
        if stated is None:
            return in_order
        groups = stated.long()
        if not self._scheme.act_order:
            if not torch.equal(groups, in_order):
                raise CheckpointError(
                    f"tensor '{clip(name)}' has groups that are no neighbours (g_idx), which the "
                    "config denies (desc_act)"
                )
        elif int(groups.min()) < 0 or int(groups.max()) >= layout.inputs // layout.group:
            raise CheckpointError(f"tensor '{clip(name)}': g_idx names a group that is not there")
        return groups

    def _unpack(
        self, stored: dict[str, torch.Tensor], groups: torch.Tensor, first: int, last: int
    ) -> Int4Weight:
        """Outputs from *first* to *last*, both multiples of `WORD`."""
        words = slice(first // WORD, last // WORD)
        awq = self._scheme.method == "awq"
        q = (
            along_outputs(stored["qweight"][:, words], awq=True)
            if awq
            else along_inputs(stored["qweight"][:, first:last])
        )
        scales = stored["scales"][:, first:last].float()
        if "qzeros" in stored:
            zeros = along_outputs(stored["qzeros"][:, words], awq=awq)
            # A zero point of nought, stored as one less, wraps around.
            zeros = (zeros + self._scheme.zero_offset) & 15
        else:
            zeros = torch.full(scales.shape, MIDDLE, dtype=torch.uint8)
        return Int4Weight(q, zeros, scales, groups)

    def _bad(self, entry: TensorEntry, what: str) -> CheckpointError:
        shape = clip(list(entry.shape), 60)
        return CheckpointError(f"tensor '{clip(entry.name)}' of shape {shape} {what}")
