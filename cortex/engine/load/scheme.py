"""How a checkpoint says that its weights are quantised: ``quantization_config``. No torch.

Which weights are is not asked of the config but of the files: those with the tensors that the
method stores instead of a plain weight.
"""

from __future__ import annotations

import attrs

from cortex.engine.models.fields import Fields
from cortex.errors import CheckpointError, UnsupportedModel, clip

SECTIONS = ("quantization_config", "compression_config")  # the second is an old name
SUPPORTED = "awq (gemm), gptq (4 bits), fp8, compressed-tensors (float-quantized)"
METHODS = frozenset({"awq", "gptq", "fp8", "compressed-tensors"})
MAX_GROUP = 1 << 20  # inputs


@attrs.frozen
class Int4Scheme:
    """Integers of 4 bits with a scale and a zero point for each group of inputs.

    ``group`` None: all inputs of an output are one. ``zero_offset`` is what stored zero points are
    short of. ``act_order``: inputs of a group need not be neighbours. ``symmetric``: zero points
    may be left out.
    """

    method: str  # awq or gptq
    group: int | None
    zero_offset: int = 0
    act_order: bool = False
    symmetric: bool = False


@attrs.frozen
class Fp8Scheme:
    """Eight-bit floats, with a scale for the tensor, each row, or each ``block`` (rows, inputs)."""

    method: str
    block: tuple[int, int] | None = None


Scheme = Int4Scheme | Fp8Scheme


def read_scheme(config: Fields) -> Scheme | None:
    """What *config*, a config.json, says; None where weights are plain.

    Raises UnsupportedModel, naming what is supported, and CheckpointError for values out of range.
    """
    section = config.section(SECTIONS[0]) or config.section(SECTIONS[1])
    if section is None:
        return None
    method = section.text("quant_method", "").casefold()
    match method:
        case "awq":
            return _awq(section)
        case "gptq":
            return _gptq(section)
        case "fp8":
            return Fp8Scheme(method, _block(section, "weight_block_size"))
        case "compressed-tensors":
            return _compressed(section)
    raise UnsupportedModel(
        f"checkpoints quantised by '{clip(method or 'no stated method', 40)}' are not supported; "
        f"known: {SUPPORTED}"
    )


def _unsupported(method: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{method} checkpoints {what} are not supported; known: {SUPPORTED}")


def _group(section: Fields) -> int | None:
    """Inputs in a group; None for -1."""
    group = section.integer("group_size", 128, low=-1, high=MAX_GROUP)
    if group == 0:
        raise CheckpointError("config.json: group_size is 0; it must be -1 or at least 1")
    return None if group == -1 else group


def _four_bits(section: Fields, method: str) -> None:
    bits = section.integer("bits", 4, low=1, high=64)
    if bits != 4:
        raise _unsupported(method, f"of {bits} bits")


def _awq(section: Fields) -> Int4Scheme:
    _four_bits(section, "awq")
    version = section.text("version", section.text("format", "gemm")).casefold()
    if version != "gemm":
        raise _unsupported("awq", f"in the layout '{clip(version, 40)}'")
    return Int4Scheme("awq", _group(section), symmetric=not section.flag("zero_point", True))


def _gptq(section: Fields) -> Int4Scheme:
    _four_bits(section, "gptq")
    layout = section.text("checkpoint_format", section.text("format", "gptq")).casefold()
    if layout not in ("gptq", "gptq_v2"):
        raise _unsupported("gptq", f"in the layout '{clip(layout, 40)}'")
    if any(rules for rules in section.members("dynamic").values()):
        raise _unsupported("gptq", "with settings for some of the modules (dynamic)")
    return Int4Scheme(
        "gptq",
        _group(section),
        zero_offset=1 if layout == "gptq" else 0,
        act_order=section.flag("desc_act", False),
    )


def _block(section: Fields, name: str) -> tuple[int, int] | None:
    """A block's rows and inputs."""
    if name not in section:
        return None
    sizes = section.integers(name, low=1, high=MAX_GROUP)
    if len(sizes) != 2:
        raise CheckpointError(f"config.json: {name} has {len(sizes)} sizes; it must have 2")
    return sizes[0], sizes[1]


def _compressed(section: Fields) -> Fp8Scheme:
    """One group of weights in FP8; the activations, which may be too, are not quantised here."""
    layout = section.text("format", "")
    if layout not in ("float-quantized", "naive-quantized"):
        raise _unsupported("compressed-tensors", f"in the format '{clip(layout, 40)}'")
    groups = section.members("config_groups")
    blocks: set[tuple[int, int] | None] = set()
    for name in groups:
        group = Fields(groups, "config.json: config_groups").section(name)
        weights = None if group is None else group.section("weights")
        if weights is None:
            raise CheckpointError(f"config.json: config_groups: '{clip(name, 40)}' has no weights")
        kind = weights.text("type", "")
        bits = weights.integer("num_bits", None, low=1, high=64)
        if (kind, bits) != ("float", 8):
            raise _unsupported(
                "compressed-tensors", f"with {clip(kind, 20)} weights of {bits} bits"
            )
        blocks.add(_block(weights, "block_structure"))
    if len(blocks) != 1:
        raise _unsupported("compressed-tensors", f"with {len(blocks)} kinds of weights")
    return Fp8Scheme("compressed-tensors", blocks.pop())
