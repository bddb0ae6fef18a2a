"""Anthropic's tools: custom ones as they are, typed ones that the client runs with their schema.

Tools that only the vendor's servers can run (web search, code execution) are left out: a model
that called one would wait for an answer that no client gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from cortex.errors import BadRequest, clip
from cortex.translate.conversation import Tool, ToolChoice, ToolMode
from cortex.wire import anthropic as wire

_STRING: dict[str, Any] = {"type": "string"}
_INTEGER: dict[str, Any] = {"type": "integer"}
_RANGE: dict[str, Any] = {"type": "array", "items": _INTEGER}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _command(*names: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


_EDITS: dict[str, Any] = {
    "path": _STRING,
    "file_text": _STRING,
    "old_str": _STRING,
    "new_str": _STRING,
    "insert_line": _INTEGER,
}
_BASH = Tool(
    "bash",
    "Run a command in a persistent bash session. Set restart to start the session anew.",
    _object({"command": _STRING, "restart": {"type": "boolean"}}),
)
_EDITOR_TEXT = "View, create and edit text files."
_OLD_EDITOR = Tool(
    "str_replace_editor",
    _EDITOR_TEXT,
    _object(
        {
            "command": _command("view", "create", "str_replace", "insert", "undo_edit"),
            **_EDITS,
            "view_range": _RANGE,
        },
        "command",
        "path",
    ),
)
_EDITOR = Tool(
    "str_replace_based_edit_tool",
    _EDITOR_TEXT,
    _object(
        {
            "command": _command("view", "create", "str_replace", "insert"),
            **_EDITS,
            "insert_text": _STRING,
            "view_range": _RANGE,
        },
        "command",
        "path",
    ),
)
_MEMORY = Tool(
    "memory",
    "Keep notes in files under /memories, across conversations.",
    _object(
        {
            "command": _command("view", "create", "str_replace", "insert", "delete", "rename"),
            **_EDITS,
            "insert_text": _STRING,
            "view_range": _RANGE,
            "old_path": _STRING,
            "new_path": _STRING,
        },
        "command",
    ),
)
# Types whose calls the client answers itself.
_TYPED = {
    "bash_20250124": _BASH,
    "text_editor_20250124": _OLD_EDITOR,
    "text_editor_20250429": _EDITOR,
    "text_editor_20250728": _EDITOR,
    "memory_20250818": _MEMORY,
}
# Types whose calls the vendor's servers answer, and nobody else.
_SERVED = re.compile(r"(?:web_search|web_fetch|code_execution)_\d{8}")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def tools_of(tools: Iterable[wire.Tool]) -> tuple[Tool, ...]:
    """The tools that a model may call here, in the client's order."""
    found: list[Tool] = []
    for tool in tools:
        if tool.custom and tool.name is not None:
            schema = _NO_ARGUMENTS if tool.input_schema is None else tool.input_schema
            found.append(Tool(tool.name, tool.description, schema, tool.strict))
        elif tool.type in _TYPED:
            found.append(_TYPED[tool.type])
    names = [tool.name for tool in found]
    if len(set(names)) != len(names):
        raise BadRequest(
            "tools: Tool names must be unique.", param="tools", code="tool_name_conflict"
        )
    return tuple(found)


def check_served(tools: Sequence[wire.Tool]) -> None:
    """`BadRequest` where *tools* are of the vendor's servers, all of them: a request that offers
    nothing else (a search, say) wants what they find, and no answer without it would do."""
    if tools and all(_SERVED.fullmatch(tool.type or "") for tool in tools):
        name = tools[0].name or str(tools[0].type).rpartition("_")[0]
        raise BadRequest(
            f"tools.0: this server does not run {clip(name)}; offer tools that the client runs",
            param="tools.0",
            code="unsupported_value",
        )


def choice_of(
    choice: wire.ToolChoice | None, asked: Iterable[wire.Tool], tools: Iterable[Tool]
) -> ToolChoice | None:
    """The choice among *tools*, what is left of the tools *asked* for."""
    if choice is None:
        return None
    names = {tool.name for tool in tools}
    parallel = False if choice.disable_parallel_tool_use else None
    if choice.type == "none":
        return ToolChoice(ToolMode.NONE)
    if choice.type == "tool" and choice.name not in names:
        if choice.name not in {tool.name for tool in asked}:
            raise BadRequest(
                f"tool_choice.name: Tool '{clip(choice.name)}' not found in provided tools",
                param="tool_choice.name",
            )
        return None  # a tool of the vendor's servers: answer without it
    if choice.type == "tool":
        return ToolChoice(ToolMode.NAMED, choice.name, parallel)
    if choice.type == "any":
        return ToolChoice(ToolMode.REQUIRED, parallel=parallel) if names else None
    return ToolChoice(ToolMode.AUTO, parallel=parallel)
