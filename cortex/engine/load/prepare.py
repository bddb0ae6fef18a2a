"""What is between a checkpoint's files and a decoder: unpacking, and quantising at load."""

from __future__ import annotations

import torch

from cortex.engine.load.fp8_source import Fp8Source
from cortex.engine.load.gguf_source import GgufSource
from cortex.engine.load.in_situ import QuantizingSource
from cortex.engine.load.int4_source import Int4Source
from cortex.engine.load.scheme import Int4Scheme, Scheme
from cortex.engine.load.source import Source
from cortex.engine.load.tensors import Tensors
from cortex.engine.quant.fp8 import has_fp8
from cortex.engine.quant.recipes import find_recipe
from cortex.errors import UnsupportedLoad


def prepared(source: Source, dtype: torch.dtype, quant: str | None, device: torch.device) -> Source:
    """*source* as a decoder that computes in *dtype* on *device* reads it, weights kept as *quant*.

    None keeps them as they come. *source* stays the caller's to close. Raises UnsupportedLoad for a
    *quant* that is not known, or that device or checkpoint do not allow; see also
    `scheme.read_scheme`.
    """
    if isinstance(source, GgufSource) and quant is not None:
        raise UnsupportedLoad(
            "a GGUF file stays as it is, there is no quantisation at load; leave quant out",
            param="quant",
        )
    scheme = source.scheme if isinstance(source, Tensors) else None
    if quant is not None and scheme is not None and quant.casefold() in _names(scheme):
        quant = None
    if isinstance(scheme, Int4Scheme):
        _refuse_second(scheme, quant)
        return Int4Source(source, scheme)
    if scheme is not None:
        # What is quantised next is better taken from fp32 than from a rounded weight.
        kept = dtype if quant is None else torch.float32
        source = Fp8Source(source, scheme, kept, keep=quant is None and has_fp8(device))
    if quant is None:
        return source
    recipe = find_recipe(quant)
    if recipe.name == "fp8" and not has_fp8(device):
        raise UnsupportedLoad(
            f"quant fp8 needs a GPU of compute capability 8.9 or above; {device} is none",
            param="quant",
        )
    return QuantizingSource(source, recipe, device)


def _names(scheme: Scheme) -> set[str]:
    """What a request may call the quantisation that a checkpoint has."""
    return {scheme.method} if isinstance(scheme, Int4Scheme) else {scheme.method, "fp8"}


def _refuse_second(scheme: Scheme, quant: str | None) -> None:
    if quant is not None:
        raise UnsupportedLoad(
            f"the checkpoint is quantised already, by {scheme.method}; leave quant out",
            param="quant",
        )
