"""How large schemas become: those that grow are found, the usual ones pass."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.errors import BadRequest
from cortex.text.grammar.weight import MAX_WEIGHT, check_weight

NODE = {"$ref": "#/$defs/n"}


def refused(schema: dict[str, Any]) -> str | None:
    """The code that *schema* is refused with."""
    try:
        check_weight(schema, "p", "too_complex")
    except BadRequest as error:
        return error.error_code if error.param == "p" else "the field is not named"
    return None


def chain(levels: int, link: Any) -> dict[str, Any]:
    """``a0`` to ``a<levels>``, each made by *link* of a reference to the one before it."""
    defs: dict[str, Any] = {"a0": {"properties": {"z": {}}}}
    for i in range(1, levels + 1):
        defs[f"a{i}"] = link({"$ref": f"#/$defs/a{i - 1}"}, i)
    return {"$defs": defs, "$ref": f"#/$defs/a{levels}"}


def both(ref: Any, i: int) -> Any:
    held = {"allOf": [ref, {"properties": {f"q{i}": {}}}]}
    return {"properties": {"x": held, "y": held}}


def beside(ref: Any, i: int) -> Any:
    held = {**ref, "required": [f"q{i}"]}
    return {"properties": {"x": held, "y": held}}


def alternatives(ref: Any, i: int) -> Any:
    return {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"z": both(ref, i)}}


def within(ref: Any, i: int) -> Any:
    return {"allOf": [{"anyOf": [ref, {"type": "null"}]}, {"anyOf": [ref, {"title": str(i)}]}]}


@pytest.mark.parametrize("link", [both, beside, alternatives, within])
@pytest.mark.parametrize("levels", [16, 30, 120])
def test_what_doubles_at_each_level_is_refused(link: Any, levels: int) -> None:
    assert refused(chain(levels, link)) == "too_complex"
    assert refused(chain(2, link)) is None


def plain(ref: Any, i: int) -> Any:
    return {"properties": {"x": ref, "y": {**ref, "description": str(i)}}}


def once(ref: Any, i: int) -> Any:
    return {"allOf": [ref], "title": str(i)}


def extended(ref: Any, i: int) -> Any:
    return {"allOf": [ref, {"properties": {f"q{i}": {}}}]}


@pytest.mark.parametrize("link", [plain, once, extended])
def test_what_does_not_grow_passes(link: Any) -> None:
    assert refused(chain(40, link)) is None


@pytest.mark.parametrize(
    "kid",
    [
        NODE,
        {**NODE, "description": "d"},
        {"allOf": [NODE], "default": {}},
        {"anyOf": [NODE, {"type": "null"}], "default": None},
        {"type": "array", "items": NODE},
    ],
)
def test_recursion_passes(kid: Any) -> None:
    tree = {"type": "object", "properties": {"v": {"type": "integer"}, "k": kid}}
    assert refused({"$defs": {"n": tree}, **NODE}) is None


def test_a_union_of_many_passes_with_and_without_a_type_beside_it() -> None:
    kind = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string"} for n in range(30)},
        "required": ["p0"],
    }
    defs = {f"k{n}": kind for n in range(60)}
    union = {"anyOf": [{"$ref": f"#/$defs/k{n}"} for n in range(60)]}
    assert refused({"$defs": defs, **union, "discriminator": {"propertyName": "p0"}}) is None
    assert refused({"$defs": defs, **union, "type": "object"}) is None


def test_many_alternatives_at_once_are_refused() -> None:
    sides = [{"anyOf": [{"required": [f"p{i}{j}"]} for j in range(8)]} for i in range(8)]
    assert refused({"allOf": sides}) == "too_complex"
    assert MAX_WEIGHT < 8**8
    assert refused({"allOf": sides[:3]}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.org/s"},
        {"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}},
        {"$ref": "#/$defs/none"},
        {"$ref": "#/allOf/7", "allOf": [{}]},
        {"properties": {"a": {"$id": "https://example.org/s"}}},
    ],
)
def test_references_that_cannot_be_followed_are_refused(schema: dict[str, Any]) -> None:
    assert refused(schema) == "invalid_schema"


def test_pointers_are_followed_as_they_are_written() -> None:
    schema = {
        "$id": "https://example.org/top",
        "$defs": {"a/b~c": {"allOf": [{"type": "object"}]}},
        "allOf": [{"$ref": "#/$defs/a~1b~0c"}, {"$ref": "#/allOf/2"}, {"title": "x"}],
    }
    assert refused(schema) is None
    assert refused({"properties": {"$ref": {"type": "string"}}}) is None


def test_what_is_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    assert refused(schema) == "too_complex"
    assert refused(chain(400, plain)) == "too_complex"
