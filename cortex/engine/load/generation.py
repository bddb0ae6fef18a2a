"""What the checkpoint itself says about ending and sampling. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from cortex.engine.load.json_file import read_object
from cortex.engine.models.fields import Fields
from cortex.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


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
    path = directory / GENERATION_CONFIG
    raw = read_object(path) if path.is_file() else {}
    fields = Fields(raw, GENERATION_CONFIG)

    def number(name: str, low: float, high: float) -> float | None:
        return fields.number(name, None, low=low, high=high) if name in fields else None

    return GenerationDefaults(
        eos_ids=frozenset(_eos(config, CONFIG) | _eos(raw, GENERATION_CONFIG)),
        temperature=number("temperature", 0.0, 100.0),
        top_k=fields.integer("top_k", None, low=0, high=1 << 23) if "top_k" in fields else None,
        top_p=number("top_p", 0.0, 1.0) or None,
        min_p=number("min_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 0.01, 100.0),
        do_sample=fields.flag("do_sample", False) if "do_sample" in fields else None,
    )
