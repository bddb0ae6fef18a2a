"""How a checkpoint wants its embeddings made: sentence-transformers' files. No torch.

``modules.json`` lists what follows the model, in order; a Pooling module's folder (``1_Pooling``)
has a config.json that names the mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.engine.load.json_file import read_array, read_object
from cortex.engine.request import Pooling
from cortex.errors import CheckpointError, clip

MODULES = "modules.json"
POOLING = "1_Pooling"
# As the files spell them, without "pooling_mode_"; newer ones leave "_tokens" out too.
MODES = {
    "lasttoken": Pooling.LAST,
    "last": Pooling.LAST,
    "mean_tokens": Pooling.MEAN,
    "mean": Pooling.MEAN,
}

# By their numbers in GGUF files, which also know the first token (2) and ranks (4).
GGUF_NONE = 0
GGUF_MODES = {1: Pooling.MEAN, 3: Pooling.LAST}

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@attrs.frozen
class EmbeddingRecipe:
    """``stated`` where the checkpoint's files tell: it is an embedding model. ``refusal`` says what
    they ask for that this engine cannot do; None where it can."""

    pooling: Pooling = Pooling.LAST
    normalize: bool = True
    stated: bool = False
    refusal: str | None = None


def read_recipe(directory: Path) -> EmbeddingRecipe:
    """The recipe of the checkpoint in *directory*; the last token, normalised, where no file tells.

    Raises CheckpointError when a file is not what it should be.
    """
    if (directory / MODULES).is_file():
        return _of_modules(directory, read_array(directory / MODULES))
    if (directory / POOLING / "config.json").is_file():
        return _of_mode(directory, POOLING, normalize=True)
    return EmbeddingRecipe()


def gguf_recipe(metadata: Mapping[str, Any]) -> EmbeddingRecipe:
    """As a GGUF file's *metadata* says; the last token, normalised, where it says nothing."""
    key = f"{metadata.get('general.architecture')}.pooling_type"
    value = metadata.get(key)
    if value is None or value == GGUF_NONE:
        return EmbeddingRecipe()
    if type(value) is not int:
        raise CheckpointError(f"{clip(key)} is {clip(value, 40)}, not a number")
    if value not in GGUF_MODES:
        return EmbeddingRecipe(stated=True, refusal=f"pooling of type {value} is not supported")
    return EmbeddingRecipe(GGUF_MODES[value], stated=True)


def _of_modules(directory: Path, modules: list[Any]) -> EmbeddingRecipe:
    folder: str | None = None
    normalize = False
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(kind, str):
            raise CheckpointError(f"{MODULES}: a module has no type")
        match kind.rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                folder = module.get("path")
            case "Normalize":
                normalize = True
            case other:
                return EmbeddingRecipe(
                    stated=True, refusal=f"a {clip(other)} module is not supported"
                )
    if folder is None:
        raise CheckpointError(f"{MODULES}: there is no pooling module")
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise CheckpointError(f"{MODULES}: the pooling module's path is not a folder's name")
    return _of_mode(directory, folder, normalize=normalize)


def _of_mode(directory: Path, folder: str, *, normalize: bool) -> EmbeddingRecipe:
    config = read_object(directory / folder / "config.json")
    named = config.get("pooling_mode")
    modes = named if isinstance(named, list) else [] if named is None else [named]
    modes = modes or [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    pooling = MODES.get(str(modes[0])) if len(modes) == 1 else None
    if pooling is None:
        shown = clip(" with ".join(map(str, modes)) or "no mode")
        return EmbeddingRecipe(stated=True, refusal=f"pooling by {shown} is not supported")
    return EmbeddingRecipe(pooling, normalize, stated=True)
