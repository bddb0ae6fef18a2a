"""OpenAI's Responses requests: what is checked, honoured or echoed; everything else is ignored.

Clients replay items of earlier turns, of types that only their vendor's tools make, and do not
recover from a 400 about one of them; so unknown items, parts and tools are kept by their type
alone (`reference/api.md` 2.4). What a value of a known field may be is checked strictly.
"""

from __future__ import annotations

from typing import Any

import attrs

from cortex.wire import limits
from cortex.wire.converter import FieldError, careful, quick
from cortex.wire.openai import EFFORTS, MAX_MESSAGES
from cortex.wire.tools import TOOL_NAME

MAX_TOOLS = 1024


# Parts of a message's content, or of a tool's output.


@attrs.frozen
class TextPart:
    text: str


@attrs.frozen
class ImagePart:
    """``image_url`` is a URL or a data URL."""

    image_url: str | None = None
    file_id: str | None = None


@attrs.frozen
class FilePart:
    """``file_data`` is a data URL, or bare base64 with a telling ``filename``."""

    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None


@attrs.frozen
class OtherPart:
    type: str


Part = TextPart | ImagePart | FilePart | OtherPart
Content = str | tuple[Part, ...]
TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})


# Items of the input.


@attrs.frozen
class Message:
    role: str = attrs.field(validator=limits.one_of("user", "assistant", "system", "developer"))
    content: Content


@attrs.frozen
class FunctionCall:
    call_id: str = attrs.field(validator=limits.non_empty)
    name: str = attrs.field(validator=limits.non_empty)
    arguments: str


@attrs.frozen
class CustomCall:
    call_id: str = attrs.field(validator=limits.non_empty)
    name: str = attrs.field(validator=limits.non_empty)
    input: str


@attrs.frozen
class CallOutput:
    """What the client's function or custom tool gave."""

    call_id: str = attrs.field(validator=limits.non_empty)
    output: Content


@attrs.frozen
class ReasoningItem:
    summary: tuple[Part, ...] | None = None
    content: tuple[Part, ...] | None = None
    encrypted_content: str | None = None


@attrs.frozen
class ItemReference:
    """An item that the server is thought to keep."""

    id: str


@attrs.frozen
class OtherItem:
    type: str


Item = Message | FunctionCall | CustomCall | CallOutput | ReasoningItem | ItemReference | OtherItem
Input = str | tuple[Item, ...]
ITEMS: dict[str, type[Any]] = {
    "message": Message,
    "function_call": FunctionCall,
    "function_call_output": CallOutput,
    "custom_tool_call": CustomCall,
    "custom_tool_call_output": CallOutput,
    "reasoning": ReasoningItem,
    "item_reference": ItemReference,
}


# What comes with the input.


@attrs.frozen
class FunctionTool:
    name: str = attrs.field(validator=limits.matching(TOOL_NAME))
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


@attrs.frozen
class CustomFormat:
    """``syntax`` (lark or regex) and ``definition`` are a grammar's."""

    type: str
    syntax: str | None = None
    definition: str | None = None


@attrs.frozen
class CustomTool:
    """A tool whose input is text of any form, not JSON."""

    name: str = attrs.field(validator=limits.matching(TOOL_NAME))
    description: str | None = None
    format: CustomFormat | None = None


@attrs.frozen
class OtherTool:
    """A tool of a type that is not served; ``name`` is what a choice may call it."""

    type: str
    name: str | None = None


Tool = FunctionTool | CustomTool | OtherTool
ToolChoice = str | dict[str, Any] | None


@attrs.frozen
class TextFormat:
    type: str = attrs.field(validator=limits.one_of("text", "json_object", "json_schema"))
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None

    def __attrs_post_init__(self) -> None:
        if self.type == "json_schema" and self.schema is None:
            raise FieldError("required field missing", "schema", "missing_required_parameter")


@attrs.frozen
class TextConfig:
    format: TextFormat | None = None
    verbosity: str | None = attrs.field(
        default=None, validator=limits.one_of("low", "medium", "high")
    )


@attrs.frozen
class Reasoning:
    effort: str | None = attrs.field(default=None, validator=limits.one_of(*EFFORTS))


def _items(_: Any, field: attrs.Attribute[Any], value: Input) -> None:
    if isinstance(value, str):
        return
    limits.non_empty(None, field, value)
    if len(value) > MAX_MESSAGES:
        raise FieldError(f"at most {MAX_MESSAGES} items are allowed", field.name, "too_long")


def _tools(_: Any, field: attrs.Attribute[Any], value: tuple[Tool, ...] | None) -> None:
    limits.at_most(MAX_TOOLS)(None, field, value)
    names = [tool.name for tool in value or () if not isinstance(tool, OtherTool)]
    if len(set(names)) != len(names):
        raise FieldError("two tools have the same name", field.name)


def _not_later(_: Any, field: attrs.Attribute[Any], value: bool | None) -> None:
    if value:
        raise FieldError(
            "this server answers at once or in a stream, not in the background",
            field.name,
            "unsupported_parameter",
        )


@attrs.frozen(kw_only=True)
class CountRequest:
    """``POST /v1/responses/input_tokens``: what shapes the prompt, and no more."""

    model: str = attrs.field(validator=limits.non_empty)
    input: Input = attrs.field(validator=_items)
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None  # a stored one
    tools: tuple[Tool, ...] | None = attrs.field(default=None, validator=_tools)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: str | None = attrs.field(default=None, validator=limits.one_of("auto", "disabled"))


@attrs.frozen(kw_only=True)
class ResponsesRequest(CountRequest):
    """``POST /v1/responses``, with the superset of chat completions that concerns sampling.

    ``store`` makes no difference: nothing is stored.
    """

    stream: bool | None = None
    store: bool | None = None
    background: bool | None = attrs.field(default=None, validator=_not_later)
    include: tuple[str, ...] | None = None
    max_output_tokens: int | None = attrs.field(default=None, validator=limits.at_least(1))
    max_tool_calls: int | None = attrs.field(default=None, validator=limits.at_least(0))
    temperature: float | None = attrs.field(default=None, validator=limits.between(0, 2))
    top_p: float | None = attrs.field(default=None, validator=limits.above(0, 1))
    top_logprobs: int | None = attrs.field(default=None, validator=limits.at_least(0, 20))
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Of Open Responses.
    presence_penalty: float | None = attrs.field(default=None, validator=limits.between(-2, 2))
    frequency_penalty: float | None = attrs.field(default=None, validator=limits.between(-2, 2))
    # The superset.
    top_k: int | None = attrs.field(default=None, validator=limits.at_least(-1))
    min_p: float | None = attrs.field(default=None, validator=limits.between(0, 1))
    repetition_penalty: float | None = attrs.field(default=None, validator=limits.above(0, 10))
    seed: int | None = attrs.field(default=None, validator=limits.at_least(-(2**63), 2**63 - 1))


def _kind(value: Any, what: str) -> str:
    """The type of the object *value*."""
    if type(value) is not dict:
        raise FieldError(f"{what} must be an object", code="invalid_type")
    kind = value.get("type")
    if kind is None:
        raise FieldError("required field missing", "type", "missing_required_parameter")
    if type(kind) is not str:
        raise FieldError("expected a string", "type", "invalid_type")
    return kind


def _register(converter: Any) -> None:
    def part(value: Any, _: Any) -> Part:
        kind = _kind(value, "a content part")
        found: Part
        if kind in TEXTS:
            found = converter.structure(value, TextPart)
        elif kind == "refusal":
            found = converter.structure({"text": value.get("refusal")}, TextPart)
        elif kind == "input_image":
            found = converter.structure(value, ImagePart)
        elif kind == "input_file":
            found = converter.structure(value, FilePart)
        else:
            found = OtherPart(kind)
        return found

    def content(value: Any, _: Any) -> Content:
        if type(value) is str:
            return value
        if type(value) is not list:
            raise FieldError("expected a string or an array of parts", code="invalid_type")
        parts: tuple[Part, ...] = converter.structure(value, tuple[Part, ...])
        return parts

    def item(value: Any, _: Any) -> Item:
        if type(value) is dict and value.get("type") is None:
            # The short forms: a message by its role, a reference by its id alone.
            short = Message if "role" in value else ItemReference if "id" in value else None
            if short is not None:
                return converter.structure(value, short)  # type: ignore[no-any-return]
        kind = _kind(value, "an item")
        cls = ITEMS.get(kind)
        if cls is None:
            return OtherItem(kind)
        known: Item = converter.structure(value, cls)
        return known

    def given(value: Any, _: Any) -> Input:
        if type(value) is str:
            return value
        if type(value) is not list:
            raise FieldError("expected a string or an array of items", code="invalid_type")
        items: tuple[Item, ...] = converter.structure(value, tuple[Item, ...])
        return items

    def tool(value: Any, _: Any) -> Tool:
        kind = _kind(value, "a tool")
        if kind == "function":
            function: Tool = converter.structure(value, FunctionTool)
            return function
        if kind == "custom":
            custom: Tool = converter.structure(value, CustomTool)
            return custom
        name = value.get("name")
        return OtherTool(kind, name if isinstance(name, str) else None)

    for union, hook in (
        (Part, part),
        (Content, content),
        (Item, item),
        (Input, given),
        (Tool, tool),
    ):
        converter.register_structure_hook(union, hook)


_register(quick)
_register(careful)
