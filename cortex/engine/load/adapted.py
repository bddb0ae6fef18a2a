"""A source that passes on what another one has; what adapts weights overrides the rest."""

from __future__ import annotations

from collections.abc import Callable, Set
from types import TracebackType
from typing import Self

import torch

from cortex.engine.load.entry import TensorEntry
from cortex.engine.load.source import Source
from cortex.engine.models.config import ModelConfig
from cortex.engine.quant.types import QuantType


class AdaptedSource:
    """`cortex.engine.load.source.Source` over *source*, which it closes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source.__exit__(kind, error, trace)

    @property
    def config(self) -> ModelConfig:
        return self._source.config

    @property
    def names(self) -> Set[str]:
        return self._source.names

    @property
    def elements(self) -> int:
        return self._source.elements

    def find(self, name: str) -> TensorEntry:
        return self._source.find(name)

    def storage(self, name: str, shape: tuple[int, int]) -> QuantType | None:
        return self._source.storage(name, shape)

    def read(self, name: str, target: torch.Tensor, check: Callable[[int], None]) -> None:
        self._source.read(name, target, check)
