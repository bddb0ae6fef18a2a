"""docs/reliability.md: each fault has a test that is there, and each test of a fault has a row."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def rows() -> list[list[str]]:
    """The cells of the tables' rows, heads and rules left out."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in found if cells[-1].startswith("`") and "::" in cells[-1]]


def named_in(path: Path) -> set[str]:
    return set(DEFINED.findall(path.read_text()))


def test_each_fault_names_a_test_that_is_there():
    table = rows()
    assert len(table) > 15, "the tables were not understood"
    for cells in table:
        assert len(cells) == 5, cells
        assert all(cells[:1]), cells
        file, _, name = cells[-1].strip("`").partition("::")
        assert name in named_in(TESTS / file), cells[-1]


def test_each_test_of_a_fault_is_in_the_page():
    named = {cells[-1].strip("`") for cells in rows()}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__):
            assert {f"chaos/{path.name}::{name}" for name in named_in(path)} <= named
