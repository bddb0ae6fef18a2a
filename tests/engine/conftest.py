"""One torch thread, and engines on a tiny random checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import write_checkpoint

from cortex.engine.cache import SPARE_BLOCKS
from cortex.engine.engine import Engine
from cortex.engine.load.checkpoint import open_engine

OpenTiny = Callable[..., Engine]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def open_tiny(tiny: Path) -> Iterable[OpenTiny]:
    """`open_engine` on the tiny checkpoint in fp32; engines are closed after the test."""
    opened: list[Engine] = []

    def open_it(*, blocks: int | None = None, directory: Path = tiny, **options: object) -> Engine:
        if blocks is not None:  # of 32 tokens of 512 bytes, and those that are nobody's
            options["kv_bytes"] = (blocks + SPARE_BLOCKS) * 32 * 512
        options.setdefault("dtype", "float32")
        engine = open_engine(directory, device="cpu", **options)
        opened.append(engine)
        return engine

    yield open_it
    for engine in opened:
        engine.close()
