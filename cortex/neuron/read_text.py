"""Reads a checkpoint's text side from its files. Blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.engine.load.generation import (
    GenerationDefaults,
    gguf_generation_defaults,
    read_generation_defaults,
)
from cortex.engine.load.gguf_file import read_metadata
from cortex.engine.load.pooling import gguf_recipe, read_recipe
from cortex.errors import CheckpointError
from cortex.neuron.model_place import is_gguf
from cortex.neuron.model_text import ModelText
from cortex.text.closing import closing_of
from cortex.text.gguf_tokenizer import read_tokenizer
from cortex.text.infill import find_infill
from cortex.text.reasoning import find_markers
from cortex.text.template import ChatTemplate
from cortex.text.tokenizer import Tokenizer, read_object
from cortex.text.tools.formats import find_format


def read_text(place: Path) -> ModelText:
    """Tokenizer, template and generation defaults. `CheckpointError` when a file is bad.

    Of a GGUF file they come from its metadata, where there are no files beside it that say so.
    """
    directory = place.parent if is_gguf(place) else place
    recipe = read_recipe(directory)
    if is_gguf(place):
        metadata = read_metadata(place)
        tokenizer, defaults = _from_gguf(place, metadata)
        recipe = recipe if recipe.stated else gguf_recipe(metadata)
    else:
        tokenizer, defaults = Tokenizer.from_directory(place), read_generation_defaults(place)
    template = ChatTemplate.find(directory, tokenizer)
    markers = find_markers(tokenizer)
    tool_format = find_format(template.tool_source) if template is not None else None
    own_eos = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    features = template.features if template is not None else None
    return ModelText(
        tokenizer,
        template,
        attrs.evolve(defaults, eos_ids=defaults.eos_ids | own_eos),
        reasoning=markers is not None and features is not None and features.thinking,
        tool_call=tool_format is not None and features is not None and features.tools,
        markers=markers,
        tool_format=tool_format,
        closing=None if markers is None else closing_of(tokenizer, markers, template),
        infill=find_infill(tokenizer),
        embedding=recipe,
    )


def _from_gguf(path: Path, metadata: Mapping[str, Any]) -> tuple[Tokenizer, GenerationDefaults]:
    directory = path.parent
    made = read_tokenizer(metadata, read_object(directory / "tokenizer.json"))
    beside = read_object(directory / "tokenizer_config.json") or {}
    tokenizer = Tokenizer(made.document, {**made.config, **beside})
    if tokenizer.vocab_size > made.size:
        raise CheckpointError(
            f"tokenizer.json has {tokenizer.vocab_size} tokens, {path.name} only {made.size}:"
            " they are of different models"
        )
    defaults = gguf_generation_defaults(directory, metadata)
    return tokenizer, attrs.evolve(defaults, eos_ids=defaults.eos_ids | made.eos_ids)
