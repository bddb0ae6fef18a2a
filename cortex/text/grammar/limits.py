"""What a client's schema, pattern or grammar may be at most. Pure functions.

The grammar library bounds its own work too (a second of a core at worst, measured); these limits
refuse early, and with words, what would run into those, or slow each of its tokens down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cortex.errors import BadRequest
from cortex.text.grammar.weight import check_weight

MAX_TEXT = 256 << 10  # characters of a schema as JSON, or of a Lark grammar
MAX_PATTERN = 32 << 10  # characters of a regular expression
MAX_DEPTH = 100  # levels of JSON; the library's reader ends at 128
MAX_ENUM = 5000  # values of all enums together
MAX_PROPERTIES = 2000  # of all objects together; the time for optional ones is quadratic
MAX_EXPANSION = 10_000  # characters of a pattern whose counted repetitions are written out
MAX_CHOICES = 1000

TOO_COMPLEX = "grammar_too_complex"

# What JSON Schema has and llguidance 1.9 does not enforce: it refuses a schema with any of them.
# What no draft of JSON Schema knows is an annotation there, which restricts nothing.
UNSUPPORTED = frozenset({"not", "if", "then", "else", "propertyNames", "uniqueItems"})
UNSUPPORTED |= {"dependencies", "dependentRequired", "dependentSchemas"}
UNSUPPORTED |= {"contains", "minContains", "maxContains"}
UNSUPPORTED |= {"unevaluatedItems", "unevaluatedProperties"}
UNSUPPORTED |= {"$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"}
_IN_ONE = ("items", "additionalItems", "additionalProperties")
_IN_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_IN_MAP = ("properties", "patternProperties", "$defs", "definitions")

_PATTERN_TOKEN = re.compile(
    r"""
    \\[pPxuU]\{[^}]*\} | \\.                   # an escape
    | \[\^?\]?(?:\\.|[^\]\\])*\]               # a class
    | \{\s*(?P<least>\d+)\s*(?P<open>,)?\s*(?P<most>\d*)\s*\}
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_LARK_SCHEMA = re.compile(r"%json\s*")
_JSON = json.JSONDecoder()
_LARK_PATTERN = re.compile(r"/((?:[^/\\\n]|\\.)+)/")


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """`BadRequest` that names *param* when *schema* is beyond the limits."""
    enums = properties = 0
    stack: list[tuple[Any, int]] = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        if not isinstance(value, Mapping | list | tuple):
            continue
        if depth > MAX_DEPTH:
            raise _too_much(f"the schema is nested deeper than {MAX_DEPTH} levels", param)
        if isinstance(value, Mapping):
            enum, members = value.get("enum"), value.get("properties")
            enums += len(enum) if isinstance(enum, list) else 0
            properties += len(members) if isinstance(members, Mapping) else 0
            for pattern in _patterns(value):
                check_pattern(pattern, param)
            stack += [(member, depth + 1) for member in value.values()]
        else:
            stack += [(item, depth + 1) for item in value]
    if enums > MAX_ENUM:
        raise _too_much(f"the schema has {enums} enum values, at most {MAX_ENUM} allowed", param)
    if properties > MAX_PROPERTIES:
        raise _too_much(
            f"the schema has {properties} properties, at most {MAX_PROPERTIES} allowed", param
        )
    check_weight(schema, param, TOO_COMPLEX)
    if len(json.dumps(schema)) > MAX_TEXT:
        raise _too_much(f"the schema is longer than {MAX_TEXT >> 10} KiB", param)


def check_pattern(pattern: str, param: str) -> None:
    """`BadRequest` when the regular expression is long, or stands for a long one."""
    if len(pattern) > MAX_PATTERN:
        raise _too_much(f"a pattern has at most {MAX_PATTERN} characters", param)
    if expansion(pattern) > MAX_EXPANSION:
        raise _too_much(
            f"a pattern's repetitions come to more than {MAX_EXPANSION} characters", param
        )


def check_lark(text: str, param: str) -> None:
    """`BadRequest` when the Lark grammar, or a pattern or a schema that is part of it, is beyond
    the limits."""
    if len(text) > MAX_TEXT:
        raise _too_much(f"the grammar is longer than {MAX_TEXT >> 10} KiB", param)
    for match in _LARK_PATTERN.finditer(text):
        check_pattern(match[1], param)
    for match in _LARK_SCHEMA.finditer(text):
        try:
            schema, _ = _JSON.raw_decode(text, match.end())
        except (ValueError, RecursionError) as exc:
            raise BadRequest("what follows %json is no JSON", param=param) from exc
        if isinstance(schema, dict):
            check_schema(schema, param)


def expansion(pattern: str) -> int:
    """About how many characters *pattern* has with ``x{2,5}`` written as ``xxxxx``.

    Counting ends once it is beyond the limit. A pattern that is wrong has some number, too.
    """
    groups = [0]
    last = 0
    for match in _PATTERN_TOKEN.finditer(pattern):
        token = match[0]
        if token == "(":
            groups.append(0)
            last = 0
        elif token == ")":
            last = groups.pop()
            groups = groups or [0]
            groups[-1] += last
        elif match["least"]:
            least, most = int(match["least"][:9]), int(match["most"][:9] or 0)
            times = max(least, most, 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif token not in "*+?|^$":
            last = 1
            groups[-1] += 1
        if groups[-1] > MAX_EXPANSION:
            break
    return sum(groups)


def unsupported_keywords(schema: Any) -> list[str]:
    """The keywords in *schema* that are not enforced, wherever they stand, in order of names."""
    found: set[str] = set()
    stack = [schema]
    while stack:
        node = stack.pop()
        if not isinstance(node, Mapping):
            continue
        found |= UNSUPPORTED & node.keys()
        stack += [node[key] for key in _IN_ONE if key in node]
        for key in _IN_LIST:
            if isinstance(node.get(key), list | tuple):
                stack += node[key]
        for key in _IN_MAP:
            if isinstance(node.get(key), Mapping):
                stack += node[key].values()
    return sorted(found)


def _patterns(node: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(node.get("pattern"), str):
        yield node["pattern"]
    named = node.get("patternProperties")
    if isinstance(named, Mapping):
        yield from named


def _too_much(message: str, param: str) -> BadRequest:
    return BadRequest(message, param=param, code=TOO_COMPLEX)
