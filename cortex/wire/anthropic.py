"""Anthropic's Messages requests: what is checked and honoured, tolerant of everything else.

Clients send many fields, tool types and block types that only their vendor knows, and do not
recover from a 400 about one of them; so unknown ones are kept as `OtherBlock` or ignored.
Errors are worded as Anthropic words them, with dotted paths (``messages.0.content.1.source``),
because clients match on the texts (`reference/api.md` 3.8).
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import attrs

from cortex.errors import BadRequest
from cortex.wire import converter, limits
from cortex.wire.converter import FieldError, careful, quick
from cortex.wire.openai import MAX_MESSAGES, MAX_STOP_LENGTH, MAX_STOPS

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MAX_TOOLS = 1024


@attrs.frozen
class TextBlock:
    text: str


@attrs.frozen
class Source:
    """Where an image's or a document's bytes are. ``content`` holds nested blocks."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: Content = None


@attrs.frozen
class ImageBlock:
    source: Source


@attrs.frozen
class DocumentBlock:
    source: Source
    title: str | None = None
    context: str | None = None


@attrs.frozen
class SearchResultBlock:
    content: Content
    title: str | None = None
    source: str | None = None


@attrs.frozen
class ThinkingBlock:
    thinking: str


@attrs.frozen
class ToolUseBlock:
    id: str = attrs.field(validator=limits.non_empty)
    name: str
    input: dict[str, Any]


@attrs.frozen
class ToolResultBlock:
    tool_use_id: str = attrs.field(validator=limits.non_empty)
    content: Content = None
    is_error: bool | None = None


@attrs.frozen
class OtherBlock:
    """A block of a type that is not honoured: ``value`` is what the client sent."""

    type: str
    value: dict[str, Any]


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | OtherBlock
)
Content = str | tuple[Block, ...] | None
BLOCKS: dict[str, type[Any]] = {
    "text": TextBlock,
    "image": ImageBlock,
    "document": DocumentBlock,
    "search_result": SearchResultBlock,
    "thinking": ThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}


def _role(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    if value not in ("user", "assistant", "system"):
        raise FieldError("Input should be 'user', 'assistant' or 'system'", field.name)


@attrs.frozen
class Message:
    role: str = attrs.field(validator=_role)
    content: Content


@attrs.frozen
class Tool:
    """A tool. Those with a ``type`` other than "custom" are typed: the vendor knows the schema."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    def __attrs_post_init__(self) -> None:
        if not self.custom:
            return
        if self.name is None:
            raise FieldError("Field required", "name", "missing_required_parameter")
        if not TOOL_NAME.fullmatch(self.name):
            raise FieldError(f"String should match pattern '^{TOOL_NAME.pattern}$'", "name")

    @property
    def custom(self) -> bool:
        return self.type in (None, "custom")


@attrs.frozen
class ToolChoice:
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def __attrs_post_init__(self) -> None:
        if self.type not in ("auto", "any", "tool", "none"):
            raise FieldError("Input should be 'auto', 'any', 'tool' or 'none'", "type")
        if self.type == "tool" and self.name is None:
            raise FieldError("Field required", "name", "missing_required_parameter")


@attrs.frozen
class Thinking:
    """``type`` is enabled, adaptive, disabled, between_tools or what may come."""

    type: str
    budget_tokens: int | None = attrs.field(default=None, validator=limits.at_least(1))
    display: str | None = None


@attrs.frozen
class OutputFormat:
    type: str
    schema: dict[str, Any] | None = None


@attrs.frozen
class OutputConfig:
    effort: str | None = None
    format: OutputFormat | None = None


@attrs.frozen
class Metadata:
    user_id: str | None = None


def _one_message(_: Any, field: attrs.Attribute[Any], value: tuple[Message, ...]) -> None:
    if not value:
        raise FieldError("at least one message is required", field.name, "empty_array")
    if len(value) > MAX_MESSAGES:
        raise FieldError(f"at most {MAX_MESSAGES} messages are allowed", field.name, "too_long")


def _stops(_: Any, field: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    stops = value or ()
    if len(stops) > MAX_STOPS:
        raise FieldError(f"at most {MAX_STOPS} sequences allowed, got {len(stops)}", field.name)
    for stop in stops:
        if not stop:
            raise FieldError("each stop sequence must be non-empty", field.name)
        if len(stop) > MAX_STOP_LENGTH:
            raise FieldError(f"a sequence has at most {MAX_STOP_LENGTH} characters", field.name)


def _distinct_names(_: Any, field: attrs.Attribute[Any], value: tuple[Tool, ...] | None) -> None:
    names = [tool.name for tool in value or () if tool.name is not None]
    if len(names) > MAX_TOOLS:
        raise FieldError(f"at most {MAX_TOOLS} tools allowed, got {len(names)}", field.name)
    if len(set(names)) != len(names):
        raise FieldError("Tool names must be unique.", field.name, "tool_name_conflict")


def _no_servers(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if value:
        raise FieldError("this server does not connect to MCP servers", field.name)


@attrs.frozen(kw_only=True)
class CountRequest:
    """``POST /v1/messages/count_tokens``: what shapes the prompt, and no more."""

    model: str = attrs.field(validator=limits.non_empty)
    messages: tuple[Message, ...] = attrs.field(validator=_one_message)
    system: Content = None
    tools: tuple[Tool, ...] | None = attrs.field(default=None, validator=_distinct_names)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    mcp_servers: Any = attrs.field(default=None, validator=_no_servers)


@attrs.frozen(kw_only=True)
class MessagesRequest(CountRequest):
    """``POST /v1/messages``. A ``max_tokens`` of 0 warms the prompt cache and generates nothing."""

    max_tokens: int = attrs.field(validator=limits.at_least(0))
    stream: bool | None = None
    stop_sequences: tuple[str, ...] | None = attrs.field(default=None, validator=_stops)
    temperature: float | None = attrs.field(default=None, validator=limits.between(0, 2))
    top_p: float | None = attrs.field(default=None, validator=limits.above(0, 1))
    top_k: int | None = attrs.field(default=None, validator=limits.at_least(0))
    metadata: Metadata | None = None

    def __attrs_post_init__(self) -> None:
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and 0 < self.max_tokens <= budget:
            raise FieldError("`max_tokens` must be greater than `thinking.budget_tokens`")


R = TypeVar("R", bound=CountRequest)


def parse(body: dict[str, Any], cls: type[R]) -> R:
    """*body* as a *cls*, or `BadRequest` in Anthropic's words."""
    try:
        return converter.structure(body, cls)
    except BadRequest as exc:
        raise anthropic_words(exc) from exc


def anthropic_words(error: BadRequest) -> BadRequest:
    """*error* with a dotted path, and "Field required" for what is missing."""
    path = error.param or ""
    dotted = dotted_path(path)
    text = error.message.removeprefix(f"{path}: ") if path else error.message
    if error.error_code == "missing_required_parameter":
        text = "Field required"
    message = f"{dotted}: {text}" if dotted else text
    return BadRequest(message, param=dotted or None, code=error.error_code)


def dotted_path(path: str) -> str:
    """``messages[0].content[1]`` as ``messages.0.content.1``."""
    return re.sub(r"\[(\d+)\]", r".\1", path)


def _register(converter: Any) -> None:
    def block(value: Any, _: Any) -> Block:
        if type(value) is not dict:
            raise FieldError("Input should be an object", code="invalid_type")
        kind = value.get("type")
        if type(kind) is not str:
            raise FieldError("Field required", "type", "missing_required_parameter")
        cls = BLOCKS.get(kind)
        if cls is None:
            return OtherBlock(kind, value)
        known: Block = converter.structure(value, cls)
        return known

    def content(value: Any, _: Any) -> Content:
        if value is None or type(value) is str:
            return value
        if type(value) is not list:
            raise FieldError("Input should be a string or an array of blocks", code="invalid_type")
        blocks: tuple[Block, ...] = converter.structure(value, tuple[Block, ...])
        return blocks

    converter.register_structure_hook(Block, block)
    converter.register_structure_hook(Content, content)


_register(quick)
_register(careful)
