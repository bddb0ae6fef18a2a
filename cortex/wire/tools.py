"""The tools of OpenAI's chat requests, and what a request says of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from cortex.wire import limits
from cortex.wire.converter import FieldError

TOOL_NAME = r"[a-zA-Z0-9_-]{1,128}"  # Anthropic's limit; OpenAI's own is 64
NONE, AUTO, REQUIRED = "none", "auto", "required"


@attrs.frozen
class FunctionDefinition:
    name: str = attrs.field(validator=limits.matching(TOOL_NAME))
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@attrs.frozen
class Tool:
    """A tool. ``function`` is None for types that are not functions: those are skipped, all but
    custom ones, whose calls a client would wait for in vain."""

    type: str
    function: FunctionDefinition | None = None

    def __attrs_post_init__(self) -> None:
        if self.type == "function" and self.function is None:
            raise FieldError("required field missing", "function", "missing_required_parameter")
        if self.type == "custom":
            raise FieldError(
                "custom tools are not supported; a function with one string parameter is",
                "type",
                "unsupported_value",
            )


@attrs.frozen
class ToolChoice:
    """``mode`` is none, auto or required. ``allowed``: the only tools that the model is shown, None
    for all of them. ``named``: the one that it has to call."""

    mode: str = AUTO
    allowed: frozenset[str] | None = None
    named: str | None = None

    @property
    def forced(self) -> bool:
        """The answer has to be a call."""
        return self.mode == REQUIRED


def function_names(tools: Sequence[Tool] | None) -> list[str]:
    return [tool.function.name for tool in tools or () if tool.function is not None]


def choice_of(choice: str | dict[str, Any] | None, tools: Sequence[Tool] | None) -> ToolChoice:
    """What ``tool_choice`` says. `FieldError` where it is malformed or *tools* lack what it
    wants."""
    names = function_names(tools)
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        if choice not in (NONE, AUTO, REQUIRED):
            raise FieldError("must be none, auto, required or an object", "tool_choice")
        if choice == REQUIRED and not names:
            raise FieldError("required needs tools", "tool_choice")
        return ToolChoice(choice)
    kind = choice.get("type")
    if kind == "function":
        return ToolChoice(REQUIRED, named=_name_of(choice, names))
    if kind == "allowed_tools":
        return _allowed(choice.get("allowed_tools", choice), names)
    if kind == "custom":
        raise FieldError("custom tools are not supported", "tool_choice", "unsupported_value")
    raise FieldError("the type must be function or allowed_tools", "tool_choice")


def _allowed(allowed: Any, names: Sequence[str]) -> ToolChoice:
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(tools, list) or not tools:
        raise FieldError("allowed_tools needs a list of tools", "tool_choice")
    mode = allowed.get("mode", AUTO)
    if mode not in (AUTO, REQUIRED):
        raise FieldError("the mode of allowed_tools must be auto or required", "tool_choice")
    functions = [tool for tool in tools if not _is_other(tool)]
    chosen = frozenset(_name_of(tool, names) for tool in functions)
    if mode == REQUIRED and not chosen:
        raise FieldError("required needs tools that are functions", "tool_choice")
    return ToolChoice(mode, chosen)


def _is_other(tool: Any) -> bool:
    """A tool of a kind that is skipped in ``tools`` too."""
    return isinstance(tool, dict) and tool.get("type", "function") not in ("function", "custom")


def _name_of(tool: Any, names: Sequence[str]) -> str:
    """The name in ``{"function": {"name"}}`` or, as Responses has it, ``{"name"}``."""
    holder = tool.get("function", tool) if isinstance(tool, dict) else None
    name = holder.get("name") if isinstance(holder, dict) else None
    if not isinstance(name, str) or name not in names:
        raise FieldError("names a tool that is not in tools", "tool_choice")
    return name
