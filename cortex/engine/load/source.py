"""What a loader needs of a checkpoint's weights, whatever files they are in."""

from __future__ import annotations

from collections.abc import Callable, Set
from types import TracebackType
from typing import Protocol, Self

import torch

from cortex.engine.load.entry import TensorEntry
from cortex.engine.models.config import ModelConfig
from cortex.engine.quant.types import QuantType


class Source(Protocol):
    """An open checkpoint. Its tensors have the names and the order of rows that decoders ask for,
    which are those of transformers. Use as a context manager; raises CheckpointError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def config(self) -> ModelConfig:
        """From headers alone. Raises UnsupportedModel too."""
        ...

    @property
    def names(self) -> Set[str]: ...

    @property
    def elements(self) -> int:
        """Of all tensors together: the checkpoint's number of parameters."""
        ...

    def find(self, name: str) -> TensorEntry:
        """The entry of tensor *name*; CheckpointError when there is none."""
        ...

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        """The format in which tensor *name* is packed; None where it is not, or is not there."""
        ...

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        """Fill the contiguous CPU tensor *target* with tensor *name* as it is stored: of the
        file's dtype, or packed rows in uint8.

        *check* is called with the number of bytes read since its last call; what it raises ends
        the read.
        """
        ...


def bytes_of(target: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor. Bytes, because numpy has no bfloat16."""
    return memoryview(target.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
