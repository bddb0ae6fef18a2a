"""The list of cases is whole and true: each is tested here, tested elsewhere, or left out for a
reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conformance.cases import ELSEWHERE, GROUPS, LEFT_OUT

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASE = re.compile(r"(?<![A-Za-z])(?:" + "|".join(GROUPS) + r")\d\d(?!\d)", re.IGNORECASE)


def ids_in(node: ast.AST) -> Iterator[str]:
    """The case ids in the strings below *node*."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield from (found.upper() for found in CASE.findall(inner.value))


def cases_here() -> set[str]:
    """The ids in the names of this folder's tests and in the ids that they are parametrised by: a
    table's keys, or what stands in the decorator. The files of Responses are another list's."""
    found: set[str] = set()
    for path in set(HERE.glob("test_*.py")) - set(HERE.glob("test_responses*.py")):
        tree = ast.parse(path.read_text())
        tables: dict[str, set[str]] = {}
        for node in tree.body:
            value = getattr(node, "value", None)
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            if isinstance(value, ast.Dict) and isinstance(targets[0], ast.Name):
                pairs = zip(value.keys, value.values, strict=True)
                keys = [unpacked if key is None else key for key, unpacked in pairs]
                tables[targets[0].id] = {each for key in keys for each in ids_in(key)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = node.name.replace("_", " ")
                found |= {each.upper() for each in CASE.findall(words)}
                for decorator in node.decorator_list:
                    found |= set(ids_in(decorator))
                    for name in ast.walk(decorator):
                        if isinstance(name, ast.Name):
                            found |= tables.get(name.id, set())
    return found


def test_every_case_is_accounted_for_once() -> None:
    everything = {f"{group}{n:02}" for group, count in GROUPS.items() for n in range(1, count + 1)}
    here, elsewhere, left_out = cases_here(), set(ELSEWHERE), set(LEFT_OUT)
    assert here | elsewhere | left_out == everything
    assert not here & left_out
    assert not elsewhere & left_out
    assert all(LEFT_OUT.values())


def test_what_is_tested_elsewhere_is_there() -> None:
    for case, places in ELSEWHERE.items():
        for place in places.split():
            path, _, name = place.partition("::")
            source = (ROOT / path).read_text()
            assert re.search(rf"def {name}\(", source), f"{case}: {place}"
