"""Values that a model writes as bare text, made JSON by the parameter's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from cortex.text.tools.offer import Schema
from cortex.text.tools.python_literal import read_literal

MAX_DEPTH = 16  # of references and alternatives
_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})

Types = frozenset[str] | None
STRING: Types = frozenset({"string"})


def value_types(schema: Any, root: Schema) -> Types:
    """The JSON types that *schema* allows, None where it does not say. References are resolved
    within *root*."""
    return _types(schema, root, 0)


def value_json(text: str, types: Types) -> str:
    """*text* as JSON text of one of *types* (None: any).

    A string stays as it is written. What cannot be read as one of the other types is a string too:
    the client, which knows the schema, has the better words for it. Where strings are allowed
    beside numbers the text is a string, which loses nothing.
    """
    stripped = text.strip()
    if types == STRING or not stripped:
        return quoted(text)
    if types is None:
        return stripped if _read_json(stripped)[0] else quoted(text)
    if "null" in types and stripped in ("null", "None"):
        return "null"
    if "boolean" in types and stripped in ("true", "false", "True", "False"):
        return stripped.lower()
    if stripped[0] in "[{(" and types & {"object", "array"}:
        return _container(stripped, types) or quoted(text)
    if types & {"integer", "number"} and "string" not in types:
        return _number(stripped, types) or quoted(text)
    return quoted(text)


def quoted(text: str) -> str:
    """*text* as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def _number(text: str, types: frozenset[str]) -> str | None:
    is_json, value = _read_json(text)
    if not is_json or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and "number" not in types:
        return str(int(value)) if value.is_integer() else None
    return text


def _container(text: str, types: frozenset[str]) -> str | None:
    is_json, value = _read_json(text)
    if not is_json:
        try:
            value = read_literal(text)
        except ValueError:
            return None
    if ("object" if isinstance(value, dict) else "array") not in types:
        return None
    return text if is_json else json.dumps(value, ensure_ascii=False)


def _read_json(text: str) -> tuple[bool, Any]:
    """Whether *text* is JSON, and its value."""
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _types(schema: Any, root: Schema, depth: int) -> Types:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_resolved(reference, root), root, depth + 1)
    found = _own_types(schema)
    if found is None:
        found = _combined(schema, root, depth)
    if found is not None and schema.get("nullable") is True:
        found |= {"null"}
    return found


def _own_types(schema: Schema) -> Types:
    """What *schema* says without looking into others."""
    named = schema.get("type")
    listed = (named,) if isinstance(named, str) else named
    if isinstance(listed, list | tuple):
        return frozenset(t for t in listed if isinstance(t, str) and t in _TYPES) or None
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list | tuple) and values:
        return frozenset(map(_type_of, values))
    if "properties" in schema:
        return frozenset({"object"})
    return frozenset({"array"}) if "items" in schema else None


def _combined(schema: Schema, root: Schema, depth: int) -> Types:
    for key in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(key)
        if not isinstance(choices, list | tuple) or not choices:
            continue
        found = [_types(choice, root, depth + 1) for choice in choices]
        if key == "allOf":
            return next((types for types in found if types is not None), None)
        known = [types for types in found if types is not None]
        return frozenset().union(*known) if len(known) == len(found) else None
    return None


def _resolved(reference: str, root: Schema) -> Any:
    if not reference.startswith("#"):
        return None
    place: Any = root
    for step in filter(None, reference[1:].split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        place = place.get(step) if isinstance(place, Mapping) else None
    return place


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"
