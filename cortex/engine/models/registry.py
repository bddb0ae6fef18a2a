"""Which architecture a config.json asks for. No torch."""

from __future__ import annotations

from collections.abc import Callable

from cortex.engine.models import llama, mistral, qwen2, qwen3
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.fields import Fields
from cortex.errors import UnsupportedModel, clip

Configure = Callable[[Fields], ModelConfig]

_MODULES = (llama, mistral, qwen2, qwen3)
ARCHITECTURES: dict[str, Configure] = {m.ARCHITECTURE: m.configure for m in _MODULES}
MODEL_TYPES: dict[str, Configure] = {m.MODEL_TYPE: m.configure for m in _MODULES}


def configure(fields: Fields) -> ModelConfig:
    """The checked config, by ``architectures``, else by ``model_type``.

    Raises UnsupportedModel, naming the known ones, and CheckpointError for values out of range.
    """
    asked = fields.names("architectures")
    for name in asked:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name](fields)
    model_type = fields.text("model_type", "")
    if not asked and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type](fields)
    shown = asked[0] if asked else model_type
    known = ", ".join(sorted(ARCHITECTURES))
    raise UnsupportedModel(f"architecture '{clip(shown)}' is not supported; known: {known}")
