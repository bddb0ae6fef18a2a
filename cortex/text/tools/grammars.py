"""Grammars of tool calls: what a model may write when it has to call a tool.

Texts in llguidance's dialect of Lark, made of a format's `Spelling`. A marker that is one token of
the model is named by its id: spelled out with other tokens it would be text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from cortex.text.grammar.source import LENIENT, STRICT
from cortex.text.tools.formats import COUNT, Arguments, Spelling, ToolFormat
from cortex.text.tools.offer import Schema
from cortex.text.tools.tagged_call import Tags
from cortex.text.tools.typed_value import Types, value_types

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_DEFINITIONS = ("$defs", "definitions")
# What a name of a parameter may be where the schema names none.
_EMPTY = '""'
_BOOLEAN: Types = frozenset({"boolean"})
_ANY_NAME = "/[A-Za-z_][A-Za-z0-9_]*/"

Special = Callable[[str], int | None]


def call_grammar(
    tool_format: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    parallel: bool,
    special: Special,
) -> str:
    """The grammar of one call, with *parallel* of one or more, of any of *tools* (at least one; as
    chat templates get them), in *tool_format*.

    *special* gives the id of a text that is one control token. Arguments come in the schema's
    order. Of those that are written in tags only the type and the values of an enum are enforced
    where they are strings, since any text may stand there.
    """
    way = tool_format.spelling
    writer = _Writer(tool_format, special)
    functions = [tool["function"] for tool in tools]
    names = " | ".join(f"call_{number}" for number in range(len(functions)))
    again = f" ({writer.literal(way.between)} call)*" if parallel else ""
    rules = [
        f"start: {writer.literal(way.begin)} call{again} {writer.literal(way.end)}",
        f"call: {names}",
    ]
    for number, function in enumerate(functions):
        head = way.before_name + function["name"] + way.before_arguments
        tail = writer.literal(way.after_arguments)
        rules.append(f"call_{number}: {writer.literal(head)} arguments_{number} {tail}")
        rules += writer.arguments(way, function, f"arguments_{number}")
    return "\n".join(rules)


def begins_with_token(tool_format: ToolFormat, special: Special) -> bool:
    """Whether every call begins with a control token, so that it cannot be taken for text."""
    way = tool_format.spelling
    return _Writer(tool_format, special).literal(way.begin + way.before_name).startswith("<[")


@attrs.define
class _Writer:
    """Writes rules for one format and vocabulary."""

    _format: ToolFormat
    _special: Special

    def literal(self, text: str) -> str:
        """*text* in a rule, letter for letter: markers by their ids, `COUNT` as digits."""
        named = {marker: f"<[{token}]>" for marker, token in self._tokens().items()}
        named[COUNT] = "/[0-9]+/"
        signs = sorted(named, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, signs))})", text)
        return " ".join(named.get(piece) or _quoted(piece) for piece in pieces if piece)

    def _tokens(self) -> dict[str, int]:
        """The format's markers that are single tokens, with their ids."""
        ids = {marker: self._special(marker) for marker in self._format.markers}
        return {marker: token for marker, token in ids.items() if token is not None}

    def arguments(self, way: Spelling, function: Mapping[str, Any], rule: str) -> Iterator[str]:
        """The rules of *function*'s arguments, the first of which is *rule*."""
        if way.arguments is Arguments.JSON:
            yield f"{rule}: {json_arguments(function)}"
        elif way.arguments is Arguments.TAGS:
            assert way.tags is not None
            yield from self._tagged(way.tags, function, rule)
        else:
            yield from _python(function, rule)

    def _tagged(self, tags: Tags, function: Mapping[str, Any], rule: str) -> Iterator[str]:
        members = _members(function)
        if members is None:
            named = self._member(tags, None, f"{rule}_any", _Value({}, {}, LENIENT))
            yield f"{rule}: {rule}_any*"
            yield from named
            return
        pieces = [
            f"{rule}_{n}" + ("" if member.required else "?") for n, member in enumerate(members)
        ]
        yield f"{rule}: {' '.join(pieces) or _EMPTY}"
        for number, member in enumerate(members):
            yield from self._member(tags, member.name, f"{rule}_{number}", member.value)

    def _member(self, tags: Tags, name: str | None, rule: str, value: _Value) -> Iterator[str]:
        """The rules of one key and its value. ``name`` None: any."""
        line = "\n" if tags.lines else ""
        after_key = tags.key_end + ("\n" + tags.value_open if tags.value_open else "") + line
        tail = line + tags.value_end + "\n"
        key = _ANY_NAME if name is None else _quoted(name)
        head = f"{self.literal(tags.key_open)} {key} {self.literal(after_key)}"
        written = self.literal(tail)
        types = value.types
        if value.texts is not None:
            texts = " | ".join(map(_quoted, value.texts))
            yield f"{rule}: {head} ({texts}) {written}"
        elif types is None or "string" in types:
            yield f"{rule}: {head} {rule}_text"
            if written.startswith("<["):  # no text holds the token
                yield f"{rule}_text: /(.|\\n)*/ {written}"
            else:
                yield f"{rule}_text[suffix={written}]: /(.|\\n)*/"
        else:
            yield f"{rule}: {head} {value.json} {written}"


@attrs.frozen
class _Value:
    """A parameter's value: its ``schema`` in ``root``, and how the schema is read."""

    schema: Any
    root: Schema
    options: Mapping[str, Any]

    @property
    def types(self) -> Types:
        return value_types(self.schema, self.root)

    @property
    def texts(self) -> list[str] | None:
        """The only texts it may be, None where it is not a choice of texts."""
        values = self.schema.get("enum") if isinstance(self.schema, Mapping) else None
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            return None
        return values or None

    @property
    def json(self) -> str:
        """The value as JSON, with the definitions that its references name."""
        schema = self.schema if isinstance(self.schema, Mapping) else {}
        shared = {name: self.root[name] for name in _DEFINITIONS if name in self.root}
        return _schema_rule({**shared, **schema}, self.options)


@attrs.frozen
class _Member:
    name: str
    required: bool
    value: _Value


def json_arguments(function: Mapping[str, Any]) -> str:
    """The right side of a rule for the JSON object of *function*'s arguments.

    Without ``parameters`` that is ``{}``. With ``strict`` every keyword is enforced or the grammar
    does not compile; without, what cannot be enforced is left to the model.
    """
    return _schema_rule({"type": "object", **_parameters(function)}, _options(function))


def _quoted(text: str) -> str:
    """*text* as a string of a rule."""
    return json.dumps(text, ensure_ascii=False)


def _schema_rule(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = function.get("parameters")
    return NO_PARAMETERS if schema is None else schema


def _options(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return STRICT if function.get("strict") else LENIENT


def _members(function: Mapping[str, Any]) -> list[_Member] | None:
    """The parameters of *function* in their order; None where its schema does not list them."""
    root = _parameters(function)
    properties = root.get("properties")
    if not isinstance(properties, Mapping):
        return None
    required = root.get("required")
    needed = required if isinstance(required, list) else []
    options = _options(function)
    return [
        _Member(name, name in needed, _Value(schema, root, options))
        for name, schema in properties.items()
    ]


def _python(function: Mapping[str, Any], rule: str) -> Iterator[str]:
    """Named arguments. ``rule_n`` are those from number n on, where they are the first; and
    ``rule_n_more`` where others stand before them."""
    members = _members(function)
    if members is None:
        yield f'{rule}: ({rule}_any (", " {rule}_any)*)?'
        yield f'{rule}_any: {_ANY_NAME} "=" {_schema_rule({}, LENIENT)}'
        return
    yield f"{rule}: {rule}_0"
    last = len(members)
    for number, member in enumerate(members):
        rest = f"{rule}_{number + 1}"
        one = f"{rule}_{number}_one"
        optional = "" if member.required else "?"
        otherwise = "" if member.required else f" | {rest}"
        yield f"{one}: {_quoted(member.name + '=')} {_python_value(member)}"
        yield f"{rule}_{number}: {one} {rest}_more{otherwise}"
        yield f'{rule}_{number}_more: (", " {one}){optional} {rest}_more'
    yield f"{rule}_{last}: {_EMPTY}"
    yield f"{rule}_{last}_more: {_EMPTY}"


def _python_value(member: _Member) -> str:
    if member.value.types == _BOOLEAN and "enum" not in member.value.schema:
        return '("True" | "False")'
    return member.value.json
