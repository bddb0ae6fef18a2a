"""How large a JSON Schema becomes when it is compiled. Pure.

The library compiles what a plain ``$ref`` names once, however often it is named. But schemas that
must hold together (``allOf``, ``$ref`` or ``anyOf`` beside other keywords) are merged into one,
place by place and alternative by alternative, and so is everything below them: a few lines can
come to more than any memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cortex.errors import BadRequest, clip

# Schemas, merged ones counted as often as they are made: a second or two of a core (measured).
MAX_WEIGHT = 20_000
MAX_NESTING = 250  # of schemas, references followed

# What restricts: beside anything else a reference stays plain.
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_RESTRICTING = _COMBINING | {
    *("type", "enum", "const", "format", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("properties", "patternProperties", "additionalProperties", "required"),
    *("minProperties", "maxProperties", "items", "prefixItems", "additionalItems"),
    *("minItems", "maxItems"),
}
_ONE = ("items", "additionalItems", "additionalProperties")
_MANY = ("prefixItems", "items")
_NAMED = ("properties", "patternProperties")
_ALTERNATIVES = ("anyOf", "oneOf")


def check_weight(schema: Mapping[str, Any], param: str, code: str) -> None:
    """`BadRequest` with *code* when *schema* would grow beyond the limits; also when a reference in
    it is no JSON pointer into *schema* itself, whose growth could not be known."""
    try:
        weight = _Weights(schema).total()
    except _Unknown as exc:
        raise BadRequest(str(exc), param=param, code="invalid_schema") from exc
    if weight > MAX_WEIGHT:
        raise BadRequest(
            "the schema is too complex: what it combines comes to more than "
            f"{MAX_WEIGHT} schemas when written out",
            param=param,
            code=code,
        )


class _Unknown(Exception):
    """A reference that cannot be followed."""


class _Weights:
    """Weights of what references name are kept, so that this takes no longer than the text is."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[str, bool], tuple[int, int]] = {}

    def total(self) -> int:
        """Of the whole schema: each reference counts once for itself, and wherever it is merged."""
        whole, _ = self.of(self._root, 0, inline=False)
        return _capped(whole + sum(weight for weight, _ in self._known.values()))

    def of(self, node: Any, depth: int, *, inline: bool) -> tuple[int, int]:
        """The schemas that *node* comes to, and its alternatives. ``inline``: it is merged with
        others, so that what it names is written out."""
        if not isinstance(node, Mapping):
            return 1, 1
        if depth > MAX_NESTING:
            return MAX_WEIGHT + 1, 1
        if depth and isinstance(node.get("$id"), str):
            raise _Unknown("$id below the top of a schema is not supported")
        inline = inline or _merges(node)
        each = 1
        for child in _children(node):
            each += self.of(child, depth + 1, inline=False)[0]
        # Each group stands for one schema at a time: an allOf's member, one of an anyOf's.
        groups = [[member] for member in _list(node, "allOf")]
        groups += [_list(node, key) for key in _ALTERNATIVES if _list(node, key)]
        weighed = [[self.of(one, depth + 1, inline=inline) for one in group] for group in groups]
        if isinstance(node.get("$ref"), str):
            named = self._named(node["$ref"], depth, inline=inline)
            weighed.append([named if inline else (1, named[1])])
        alternatives = 1
        for group in weighed:
            ways = sum(ways for _, ways in group)
            weight = sum(weight for weight, _ in group)
            alternatives = _capped(alternatives * ways)
            each += -(-weight // ways) if inline else weight
        return _capped(each * alternatives if inline else each), alternatives

    def _named(self, reference: str, depth: int, *, inline: bool) -> tuple[int, int]:
        key = (reference, inline)
        if key not in self._known:
            self._known[key] = (1, 1)  # a circle: the library refuses those that it would merge
            self._known[key] = self.of(self._target(reference), depth + 1, inline=inline)
        return self._known[key]

    def _target(self, reference: str) -> Any:
        if not (reference == "#" or reference.startswith("#/")):
            raise _Unknown(f"$ref must be a pointer into the schema (#/...): {clip(reference, 60)}")
        node: Any = self._root
        for step in reference.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list | tuple) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise _Unknown(f"$ref names nothing in the schema: {clip(reference, 60)}")
        return node


def _merges(node: Mapping[str, Any]) -> bool:
    """Whether *node* is made of several that must hold together."""
    restricting = _RESTRICTING & node.keys()
    combining = bool(_COMBINING & restricting)
    return combining and (len(restricting) > 1 or len(_list(node, "allOf")) > 1)


def _children(node: Mapping[str, Any]) -> Iterator[Any]:
    for key in _ONE:
        if isinstance(node.get(key), Mapping):
            yield node[key]
    for key in _MANY:
        yield from _list(node, key)
    for key in _NAMED:
        if isinstance(node.get(key), Mapping):
            yield from node[key].values()


def _list(node: Mapping[str, Any], key: str) -> list[Any]:
    value = node.get(key)
    return list(value) if isinstance(value, list | tuple) else []


def _capped(number: int) -> int:
    return min(number, MAX_WEIGHT + 1)
