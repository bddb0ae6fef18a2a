"""What the checkpoint itself says about ending and sampling. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.engine.load.json_file import read_object
from cortex.engine.models.fields import Fields
from cortex.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# What a GGUF file's metadata calls them.
_IN_METADATA = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@attrs.frozen
class GenerationDefaults:
    """None where the checkpoint does not say. ``eos_ids`` are those of both files."""

    eos_ids: frozenset[int]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    do_sample: bool | None


def _eos(raw: dict[str, Any], where: str) -> set[int]:
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise CheckpointError(f"{where}: eos_token_id must be a token id or a list of them")
    return set(ids)


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """From generation_config.json, where there is one, and the EOS ids of config.json.

    Raises CheckpointError when a file is not JSON or a value is out of range.
    """
    config = read_object(directory / CONFIG)
    raw = _beside(directory)
    return _defaults(raw, _eos(config, CONFIG) | _eos(raw, GENERATION_CONFIG))


def gguf_generation_defaults(directory: Path, metadata: Mapping[str, Any]) -> GenerationDefaults:
    """From a GGUF file's *metadata*, and before it generation_config.json beside the file.

    ``eos_ids`` are those of the latter. Raises as `read_generation_defaults`.
    """
    raw = _beside(directory)
    stated = {name: metadata[key] for name, key in _IN_METADATA.items() if key in metadata}
    # In fp32, where 0.95 is 0.949999988.
    short = {n: round(v, 6) if isinstance(v, float) else v for n, v in stated.items()}
    return _defaults({**short, **raw}, _eos(raw, GENERATION_CONFIG))


def _beside(directory: Path) -> dict[str, Any]:
    path = directory / GENERATION_CONFIG
    return read_object(path) if path.is_file() else {}


def _defaults(raw: dict[str, Any], eos_ids: set[int]) -> GenerationDefaults:
    fields = Fields(raw, GENERATION_CONFIG)

    def number(name: str, low: float, high: float) -> float | None:
        return fields.number(name, None, low=low, high=high) if name in fields else None

    return GenerationDefaults(
        eos_ids=frozenset(eos_ids),
        temperature=number("temperature", 0.0, 100.0),
        top_k=fields.integer("top_k", None, low=0, high=1 << 23) if "top_k" in fields else None,
        top_p=number("top_p", 0.0, 1.0) or None,
        min_p=number("min_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 0.01, 100.0),
        do_sample=fields.flag("do_sample", False) if "do_sample" in fields else None,
    )
