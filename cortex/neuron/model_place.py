"""Where in a directory the model is: the directory itself, or one GGUF file of several. Blocks."""

from __future__ import annotations

from pathlib import Path

from cortex.engine.load.gguf_parts import part_names
from cortex.errors import CheckpointError, UnsupportedLoad, clip
from cortex.neuron.gguf_choice import (
    SUFFIX,
    Variant,
    choose,
    is_dense,
    label_of,
    matching,
    variants,
)
from cortex.neuron.hub_files import INDEX, SINGLE


def is_gguf(place: Path) -> bool:
    """Whether a place that was found here is a GGUF file."""
    return place.suffix == SUFFIX


def place_in(directory: Path, quant: str | None) -> Path:
    """*directory* where it holds safetensors, else the (first) file that *quant* names.

    Where both are there, a *quant* that is a file's is that file. Raises as
    `gguf_choice.choose`; a directory without weights is itself.
    """
    found = variants_in(directory)
    dense = any((directory / name).is_file() for name in (SINGLE, INDEX))
    if is_dense(found, quant, dense=dense):
        return directory
    return directory / choose(found, quant, directory.name).files[0]


def place_of_file(path: Path, quant: str | None) -> Path:
    """The first part of the GGUF file *path*. `UnsupportedLoad` when it is no *quant*."""
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{clip(path.name)} is no directory and no {SUFFIX} file")
    own = Variant(label_of(path.name), path.name, (path.name,))
    if quant is not None and own.label and not matching([own], quant):
        raise UnsupportedLoad(f"{clip(path.name)} is no {clip(quant, 40)}", param="quant")
    return path.with_name(part_names(path.name)[0])


def variants_in(directory: Path) -> list[Variant]:
    """The GGUF models in *directory* and in the folders in it."""
    paths = [*directory.glob(f"*{SUFFIX}"), *directory.glob(f"*/*{SUFFIX}")]
    return variants(path.relative_to(directory).as_posix() for path in paths if path.is_file())
