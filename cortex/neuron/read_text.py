"""Reads a checkpoint's text side from its files. Blocks."""

from __future__ import annotations

from pathlib import Path

import attrs

from cortex.engine.load.generation import read_generation_defaults
from cortex.engine.load.pooling import read_recipe
from cortex.neuron.model_text import ModelText
from cortex.text.closing import closing_of
from cortex.text.infill import find_infill
from cortex.text.reasoning import find_markers
from cortex.text.template import ChatTemplate
from cortex.text.tokenizer import Tokenizer
from cortex.text.tools.formats import find_format


def read_text(directory: Path) -> ModelText:
    """Tokenizer, template and generation defaults. `CheckpointError` when a file is bad."""
    tokenizer = Tokenizer.from_directory(directory)
    template = ChatTemplate.find(directory, tokenizer)
    markers = find_markers(tokenizer)
    tool_format = find_format(template.tool_source) if template is not None else None
    defaults = read_generation_defaults(directory)
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
        embedding=read_recipe(directory),
    )
