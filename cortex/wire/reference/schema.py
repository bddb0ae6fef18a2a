"""JSON Schemas (2020-12): of attrs classes, and written by hand in few words.

The classes say what is read, so unknown members are let through. A `record` says what is written:
all its members, so that a test can hold answers to it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cortex.wire import limits

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
ANYTHING: Schema = {}
NULL: Schema = {"type": "null"}

_SCALARS: dict[Any, Schema] = {
    str: STRING,
    int: INTEGER,
    float: NUMBER,
    bool: BOOLEAN,
    type(None): NULL,
    Any: ANYTHING,
}
_PREFIX = "#/components/schemas/"


def ref(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": _PREFIX + name}


def record(members: Mapping[str, Schema], description: str = "") -> Schema:
    """An object with these members; a name with ``?`` at its end is one that may be missing."""
    required = [name for name in members if not name.endswith("?")]
    schema: Schema = {"description": description} if description else {}
    schema |= {
        "type": "object",
        "properties": {name.removesuffix("?"): each for name, each in members.items()},
    }
    return schema | ({"required": required} if required else {})


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def mapping(values: Schema) -> Schema:
    """An object with any members, each of this kind."""
    return {"type": "object", "additionalProperties": values}


def nullable(schema: Schema) -> Schema:
    return any_of(schema, NULL)


def any_of(*schemas: Schema) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def one_of(*values: str) -> Schema:
    """A string out of *values*."""
    return {"const": values[0]} if len(values) == 1 else {"type": "string", "enum": list(values)}


def described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


@attrs.define(eq=False)
class Components:
    """The schemas that have a name. *tags* are the values of ``type`` by which the members of a
    union are told apart, for classes that do not hold it; *given* are unions that mean more than
    their members. Classes of the same name in two modules are told apart by their *prefixes*."""

    tags: Mapping[type, tuple[str, ...]]
    given: tuple[tuple[Any, Schema], ...] = ()
    prefixes: Mapping[str, str] = attrs.field(factory=dict)
    schemas: dict[str, Schema] = attrs.field(factory=dict)
    _named: dict[type, str] = attrs.field(factory=dict, init=False)

    def of(self, kind: Any) -> Schema:
        """The schema of *kind*: an attrs class (by name), a scalar, or what is made of these."""
        for union, schema in self.given:
            if kind == union:
                return schema
        if kind in _SCALARS:
            return _SCALARS[kind]
        if isinstance(kind, type) and attrs.has(kind):
            return self._class(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return any_of(*map(self.of, arguments))
        if origin is tuple:
            return array(self.of(arguments[0]))
        if origin is dict:
            return OBJECT if arguments[1] is Any else mapping(self.of(arguments[1]))
        raise TypeError(f"no schema for {kind!r}")

    def add(self, schemas: Mapping[str, Schema]) -> None:
        """Give *schemas* their names."""
        for name, schema in schemas.items():
            if self.schemas.setdefault(name, schema) != schema:
                raise ValueError(f"two schemas are called {name}")

    def _class(self, cls: type) -> Schema:
        name = self._named.get(cls)
        if name is None:
            prefix = self.prefixes.get(cls.__module__, "")
            name = prefix + cls.__name__.removeprefix(prefix)
            if name in self.schemas:
                raise ValueError(f"two schemas are called {name}")
            self._named[cls] = name
            self.schemas[name] = {}  # a class may hold itself
            self.schemas[name] = self._object(cls)
        return ref(name)

    def _object(self, cls: type) -> Schema:
        properties: dict[str, Schema] = {}
        required: list[str] = []
        if cls in self.tags:
            properties["type"] = one_of(*self.tags[cls])
            required.append("type")
        types_of = typing.get_type_hints(cls)
        for field in attrs.fields(cls):
            schema = self.of(types_of[field.name])
            properties[field.name] = _bounded(schema, _keywords(field.validator))
            if field.default is attrs.NOTHING:
                required.append(field.name)
        schema = {"description": _told(cls)} if cls.__dict__.get("__doc__") else {}
        schema |= {"type": "object", "properties": properties}
        return schema | ({"required": required} if required else {})


def _told(cls: type) -> str:
    """The first paragraph of what *cls* says of itself, without its marks of code."""
    text = inspect.getdoc(cls) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def _keywords(validator: Any) -> Schema:
    each: Iterable[Any] = getattr(validator, "_validators", (validator,))
    found: Schema = {}
    for one in each:
        found |= limits.keywords(one)
    return found


def _bounded(schema: Schema, keywords: Schema) -> Schema:
    """*schema* with *keywords* where they say something; of an optional value, at its value."""
    if not keywords:
        return schema
    if "anyOf" in schema:
        return {"anyOf": [_bounded(each, keywords) for each in schema["anyOf"]]}
    kinds = {
        "string": {"minLength", "maxLength", "pattern", "enum"},
        "array": {"minItems", "maxItems"},
        "integer": {"minimum", "maximum", "exclusiveMinimum"},
        "number": {"minimum", "maximum", "exclusiveMinimum"},
    }
    fitting = kinds.get(schema.get("type", ""), set())
    return schema | {name: value for name, value in keywords.items() if name in fitting}
