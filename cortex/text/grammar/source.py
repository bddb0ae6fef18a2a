"""Wishes for structured output as grammars in llguidance's own notation. Pure.

Whatever they come from, they are checked against `limits` here; whether they mean anything is for
`GrammarCompiler` to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import llguidance

from cortex.errors import BadRequest
from cortex.text.grammar.limits import (
    MAX_CHOICES,
    MAX_PATTERN,
    TOO_COMPLEX,
    check_lark,
    check_pattern,
    check_schema,
)

# Between JSON's tokens: a space, or a line break and an indentation. Room for the usual layouts,
# yet a model that has lost its way does not write blanks until its last token.
_WHITESPACE = r"\x20|\x0D?\x0A[\x20\x09]{0,40}"
# How schemas are read: what cannot be enforced is refused, and so are alternatives of a oneOf that
# do not exclude each other.
STRICT = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}
# For tools that do not ask for strictness: what cannot be enforced is left to the model.
LENIENT = {"whitespace_pattern": _WHITESPACE, "lenient": True, "coerce_one_of": True}


@attrs.frozen
class Part:
    """One grammar of several: ``member`` and ``body`` are its entry in llguidance's list, ``param``
    is the field of the request that it comes from."""

    member: str  # json_schema or lark_grammar
    body: Any
    param: str


@attrs.frozen
class Source:
    """A grammar to compile. The first part is where it begins; the others are its ``@names``."""

    parts: tuple[tuple[str, Part], ...]

    @property
    def text(self) -> str:
        """What llguidance takes."""
        grammars = [{"name": name, part.member: part.body} for name, part in self.parts]
        return json.dumps({"grammars": grammars})

    def alone(self) -> Iterable[Source]:
        """Each part as a grammar of its own, those that name others left out."""
        rest = self.parts[1:] if len(self.parts) > 1 else self.parts
        return [Source((part,)) for part in rest]


def json_object(param: str) -> Source:
    """Any JSON object."""
    return json_schema({"type": "object"}, param)


def json_schema(schema: Mapping[str, Any], param: str) -> Source:
    """JSON that *schema* allows, its properties in the schema's order.

    Enforced: type, enum, const, properties, patternProperties, additionalProperties, required,
    min/maxProperties, items, prefixItems, min/maxItems, min/maxLength, pattern, the usual formats,
    minimum, maximum and their exclusive forms, multipleOf, anyOf, allOf, oneOf where its
    alternatives exclude each other, $ref within the schema. With any other keyword of JSON Schema
    (`limits.UNSUPPORTED`) or an unknown format it does not compile.
    """
    check_schema(schema, param)
    return _single(Part("json_schema", {**schema, "x-guidance": STRICT}, param))


def regex(pattern: str, param: str) -> Source:
    """What *pattern* matches as a whole: the syntax of Rust's regex crate, without look-around."""
    check_pattern(pattern, param)
    entry = json.loads(llguidance.LLMatcher.grammar_from_regex(pattern))["grammars"][0]
    return _single(Part("lark_grammar", entry["lark_grammar"], param))


def choice(values: Iterable[str], param: str) -> Source:
    """One of *values*, letter for letter."""
    values = tuple(values)
    if len(values) > MAX_CHOICES or sum(map(len, values)) > MAX_PATTERN:
        raise BadRequest(
            f"at most {MAX_CHOICES} choices of {MAX_PATTERN} characters together allowed",
            param=param,
            code=TOO_COMPLEX,
        )
    pattern = "|".join(map(_escaped, values))
    entry = json.loads(llguidance.LLMatcher.grammar_from_regex(pattern))["grammars"][0]
    return _single(Part("lark_grammar", entry["lark_grammar"], param))


def lark(text: str, param: str) -> Source:
    """A grammar in llguidance's dialect of Lark: ``start`` is where it begins."""
    check_lark(text, param)
    return _single(Part("lark_grammar", text, param))


def either(content: Source, calls: Source) -> Source:
    """What *content* or what *calls* allows, each of one part."""
    return _combined("start: @content | @calls", content=content, calls=calls)


def after_text(calls: Source) -> Source:
    """Any text, control tokens left out, and then perhaps what *calls* allows: that must begin with
    a control token, or it would pass for text."""
    return _combined("start: TEXT | TEXT @calls\nTEXT: /(.|\\n)*/", calls=calls)


def _single(part: Part) -> Source:
    return Source((("start", part),))


def _combined(top: str, **sources: Source) -> Source:
    named = {name: source.parts[0][1] for name, source in sources.items()}
    first = Part("lark_grammar", top, next(iter(named.values())).param)
    return Source((("start", first), *named.items()))


def _escaped(text: str) -> str:
    """A regular expression for *text*."""
    return "".join(
        c if c.isalnum() or not c.isascii() or c == " " else f"\\x{{{ord(c):X}}}" for c in text
    )
