"""The tools of Responses requests: functions as they are, custom ones as functions of one text.

Tools that only the vendor's servers or clients of its models know (web search, a local shell) are
left out: a model that called one would wait for an answer that no client gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from cortex.errors import BadRequest, clip
from cortex.translate.conversation import Tool, ToolChoice, ToolMode
from cortex.wire import responses as wire

INPUT = "input"  # the one argument of the function that stands for a custom tool
_TEXT_ONLY: dict[str, Any] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
_MODES = {"none": ToolMode.NONE, "auto": ToolMode.AUTO, "required": ToolMode.REQUIRED}


@attrs.frozen
class Tools:
    """``offered`` are the tools that the model may call; ``custom`` names those that the client
    knows as custom tools; ``told`` is how a response shows them."""

    offered: tuple[Tool, ...]
    custom: frozenset[str]
    told: tuple[dict[str, Any], ...]


def tools_of(tools: Iterable[wire.Tool]) -> Tools:
    """The tools among *tools* that can be served, in the client's order."""
    offered: list[Tool] = []
    custom: set[str] = set()
    told: list[dict[str, Any]] = []
    for tool in tools:
        if isinstance(tool, wire.FunctionTool):
            schema = _NO_ARGUMENTS if tool.parameters is None else tool.parameters
            offered.append(Tool(tool.name, tool.description, schema, tool.strict))
            told.append({"type": "function", **attrs.asdict(tool)})
        elif isinstance(tool, wire.CustomTool):
            offered.append(Tool(tool.name, _description(tool), _TEXT_ONLY))
            custom.add(tool.name)
            told.append(_told(tool))
    return Tools(tuple(offered), frozenset(custom), tuple(told))


def _description(tool: wire.CustomTool) -> str | None:
    """The tool's description, and the grammar of its input where it has one."""
    form = tool.format
    if form is None or form.type != "grammar" or not form.definition:
        return tool.description
    syntax = {"lark": "Lark grammar", "regex": "regular expression"}.get(form.syntax or "")
    grammar = f"The input has to match this {syntax or 'grammar'}:\n{form.definition}"
    return f"{tool.description}\n\n{grammar}" if tool.description else grammar


def _told(tool: wire.CustomTool) -> dict[str, Any]:
    form = tool.format or wire.CustomFormat("text")
    shown = {key: value for key, value in attrs.asdict(form).items() if value is not None}
    return {
        "type": "custom",
        "name": tool.name,
        "description": tool.description,
        "format": shown,
    }


def choice_of(
    choice: wire.ToolChoice, asked: Sequence[wire.Tool], tools: Tools, parallel: bool | None
) -> ToolChoice | None:
    """The choice among *tools*, what is left of the tools *asked* for; None where it is left to
    the model. `BadRequest` for a choice that nothing in *asked* could meet."""
    found = _choice(choice, asked, [tool.name for tool in tools.offered])
    if parallel is None:
        return found
    return attrs.evolve(found or ToolChoice(), parallel=parallel)


def _choice(
    choice: wire.ToolChoice, asked: Sequence[wire.Tool], names: Sequence[str]
) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice not in _MODES:
            raise _bad("must be none, auto, required or an object")
        return _by_mode(_MODES[choice], asked, names)
    kind = choice.get("type")
    if kind in ("function", "custom"):
        name = _name_of(choice, asked, names)
        return None if name is None else ToolChoice(ToolMode.NAMED, name)
    if kind == "allowed_tools":
        return _allowed(choice, asked, names)
    if not isinstance(kind, str):
        raise _bad("required field missing", "tool_choice.type", "missing_required_parameter")
    return None  # a tool that is left out: answer without it


def _by_mode(mode: ToolMode, asked: Sequence[wire.Tool], names: Sequence[str]) -> ToolChoice | None:
    if mode is ToolMode.REQUIRED and not names:
        if not asked:
            raise _bad("required needs tools")
        return None  # all are left out
    return ToolChoice(mode)


def _allowed(
    choice: dict[str, Any], asked: Sequence[wire.Tool], names: Sequence[str]
) -> ToolChoice:
    mode, tools = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise _bad("must be auto or required", "tool_choice.mode")
    if not isinstance(tools, list) or not tools:
        raise _bad("must hold at least one tool", "tool_choice.tools")
    allowed: list[str] = []
    for index, tool in enumerate(tools):
        path = f"tool_choice.tools[{index}]"
        if not isinstance(tool, dict):
            raise _bad("expected an object", path)
        if tool.get("type") in ("function", "custom"):
            name = _name_of(tool, asked, names, path)
            if name is not None and name not in allowed:
                allowed.append(name)
    if allowed:
        return ToolChoice(_MODES[mode], allowed=tuple(allowed))
    if mode == "required":
        raise _bad("required needs tools that this server can offer")
    return ToolChoice(ToolMode.NONE)


def _name_of(
    choice: dict[str, Any],
    asked: Sequence[wire.Tool],
    names: Sequence[str],
    path: str = "tool_choice",
) -> str | None:
    """The name in *choice*; None when it is a tool's that is left out."""
    name = choice.get("name")
    if not isinstance(name, str):
        raise _bad("expected a string", f"{path}.name")
    if name in names:
        return name
    if any(isinstance(tool, wire.OtherTool) and tool.name == name for tool in asked):
        return None
    raise _bad(f"'{clip(name)}' is not among the tools", f"{path}.name")


def _bad(text: str, path: str = "tool_choice", code: str | None = None) -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path, code=code)
