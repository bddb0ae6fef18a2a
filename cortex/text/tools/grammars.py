"""Grammars of tool calls: what a model may write when it has to call a tool.

Texts in llguidance's dialect of Lark. A marker that is one token of the model is named by its id:
spelled out with other tokens it would be text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cortex.errors import BadRequest, clip
from cortex.text.grammar.source import LENIENT, STRICT
from cortex.text.tools.formats import ToolFormat

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

Special = Callable[[str], int | None]


def call_grammar(
    tool_format: ToolFormat,
    tools: Iterable[Mapping[str, Any]],
    *,
    parallel: bool,
    special: Special,
) -> str:
    """The grammar of one call, with *parallel* of one or more, of any of *tools* (at least one; as
    chat templates get them), in *tool_format*.

    *special* gives the id of a text that is one control token. `BadRequest` for a format whose
    grammar is not known.
    """
    if tool_format.name != "hermes":
        raise BadRequest(
            f"a tool call cannot be forced in the format {clip(tool_format.name)}",
            param="tool_choice",
            code="unsupported_value",
        )
    return _hermes(tool_format, tools, parallel=parallel, special=special)


def arguments_rule(function: Mapping[str, Any]) -> str:
    """The right side of a rule for the JSON object of *function*'s arguments.

    Without ``parameters`` that is ``{}``. With ``strict`` every keyword is enforced or the grammar
    does not compile; without, what cannot be enforced is left to the model.
    """
    schema = function.get("parameters")
    schema = NO_PARAMETERS if schema is None else {"type": "object", **schema}
    options = STRICT if function.get("strict") else LENIENT
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def marker(text: str, special: Special) -> str:
    """A marker in a rule: its id where it is a control token, else its characters."""
    token = special(text)
    return literal(text) if token is None else f"<[{token}]>"


def literal(text: str) -> str:
    """*text* in a rule, letter for letter; without control characters but line breaks."""
    return json.dumps(text, ensure_ascii=False)


def _hermes(
    tool_format: ToolFormat, tools: Iterable[Mapping[str, Any]], *, parallel: bool, special: Special
) -> str:
    functions = [tool["function"] for tool in tools]
    names = " | ".join(f"call_{number}" for number in range(len(functions)))
    opener, closer = marker(tool_format.open, special), marker(tool_format.close, special)
    more = ' ("\\n" call)*' if parallel else ""
    rules = [
        f"start: call{more}",
        f'call: {opener} "\\n" ({names}) "\\n" {closer}',
    ]
    for number, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function["name"])}, "arguments": '
        rules += [
            f'call_{number}: {literal(head)} arguments_{number} "}}"',
            f"arguments_{number}: {arguments_rule(function)}",
        ]
    return "\n".join(rules)
