"""The stacks on which the pages are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from pages.blocks import runnable
from pages.live_stack import LiveStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LiveStack]]:
    """The stack for a page: one for all, and one of its own for each that makes keys."""
    with ExitStack() as running:
        shared: list[LiveStack] = []

        def start() -> LiveStack:
            live = LiveStack(tmp_path_factory.mktemp("pages"))
            return running.enter_context(live.up())

        def stack_for(page: str) -> LiveStack:
            if any("cortex keys add" in block.commands for block in runnable(page)):
                return start()
            if not shared:
                shared.append(start())
            return shared[0]

        yield stack_for
