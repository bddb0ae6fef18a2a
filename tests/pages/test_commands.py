"""The commands of README.md and docs/ work: they are run, as they stand, on a live `cortex up`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable

import pytest
import yaml
from pages.blocks import (
    ENDLESS,
    MISNAMED,
    NOT_RUN,
    PAGES,
    PARSED,
    ROOT,
    RUN,
    Block,
    all_blocks,
    blocks_of,
    missing,
    resembles,
    runnable,
)
from pages.live_stack import LiveStack

PARSERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
RUNNABLE = [name for name in NAMES if runnable(name)]
DATA = [block for block in all_blocks() if block.language in PARSED]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_the_commands_of_a_page_run_in_order(page: str, stack: Callable[[str], LiveStack]) -> None:
    live = stack(page)
    for block in runnable(page):
        output = live.run(block)
        assert missing(block.output, output) == [], f"{block}\nprinted\n{output}"


@pytest.mark.parametrize("block", DATA, ids=str)
def test_the_settings_that_a_page_shows_can_be_read(block: Block) -> None:
    assert PARSERS[block.language](block.text)


def test_no_block_that_could_be_run_goes_under_another_name() -> None:
    assert [str(block) for block in all_blocks() if block.language in MISNAMED] == []


@pytest.mark.parametrize("table", [NOT_RUN, ENDLESS], ids=["not run", "endless"])
def test_the_blocks_that_are_listed_are_there(table: dict[tuple[str, str], str]) -> None:
    used = {block.entry(table) for block in all_blocks() if block.language in RUN}
    assert [entry for entry in table if entry not in used] == []


def test_blocks_are_found_with_their_language_and_without_indentation() -> None:
    text = "a\n\n- b\n\n  ```sh\n  one \\\n    two\n  ```\n\n```json\n{}\n```\n"
    assert blocks_of("x.md", text) == [
        Block("x.md", "sh", "one \\\n  two\n"),
        Block("x.md", "json", "{}\n"),
    ]


def test_of_a_console_the_lines_after_a_prompt_are_run_and_the_others_are_compared() -> None:
    block = Block("x.md", "console", "$ cortex ps\nMODEL  NODE\n\n$ cortex version\n")
    assert block.commands == "cortex ps\ncortex version\n"
    assert block.output == ["MODEL  NODE"]


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("cortex/demo  523 MB", "cortex/demo      1,024 MB", True),
        ("ready after 0.4 s", "ready after 12 s", True),
        ("version ...", "version 0.1.0 (abc)", True),
        ("cortex/demo loaded", "cortex/demo unloaded", False),
        ("cortex/demo loaded", "cortex/demo loaded twice", False),
    ],
)
def test_what_a_page_shows_may_differ_in_figures_and_width_alone(
    shown: str, printed: str, alike: bool
) -> None:
    assert resembles(shown, printed) is alike


def test_lines_that_are_missing_or_out_of_order_are_told() -> None:
    assert missing(["a", "b"], "a\nx\nb\n") == []
    assert missing(["b", "a"], "a\nb\n") == ["a"]
