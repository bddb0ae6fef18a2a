"""What requests look like: the wire classes, and what they do not say of themselves."""

from __future__ import annotations

from cortex.wire import anthropic, openai, responses
from cortex.wire.reference.schema import (
    INTEGER,
    OBJECT,
    STRING,
    Components,
    Schema,
    any_of,
    array,
    nullable,
    one_of,
    record,
)

_TEXT = any_of(
    record({"type": one_of("text", "input_text", "output_text"), "text": STRING}),
    record({"type": one_of("refusal"), "refusal": STRING}),
)
_MEDIA = record({"type": one_of(*sorted(openai.MEDIA_TYPES))})
_PROMPT = any_of(STRING, array(STRING), array(INTEGER), array(array(INTEGER)))


def _blocks(components: Components) -> Schema:
    known = [components.of(cls) for cls in anthropic.BLOCKS.values()]
    return any_of(*known, record({"type": STRING}, "A block of another type is let through."))


def _items(components: Components) -> Schema:
    known = [components.of(cls) for cls in dict.fromkeys(responses.ITEMS.values())]
    return any_of(
        *known,
        record({"role": STRING, "content": components.of(responses.Content)}, "A message, short."),
        record({"id": STRING}, "A reference, short."),
        record({"type": STRING}, "An item of another type is left out."),
    )


def request_components() -> Components:
    """Components that know the request classes of all dialects."""
    tags: dict[type, tuple[str, ...]] = {}
    for table in (anthropic.BLOCKS, responses.ITEMS):
        for kind, cls in table.items():
            tags[cls] = (*tags.get(cls, ()), kind)
    tags[responses.FunctionTool] = ("function",)
    tags[responses.CustomTool] = ("custom",)
    components = Components(
        tags,
        prefixes={
            anthropic.__name__: "Anthropic",
            responses.__name__: "Responses",
        },
    )
    part = any_of(
        record({"type": one_of(*sorted(responses.TEXTS)), "text": STRING}),
        record({"type": one_of("refusal"), "refusal": STRING}),
        record({"type": one_of("input_image"), "image_url?": nullable(STRING)}),
        record({"type": one_of("input_file"), "file_data?": nullable(STRING)}),
        record({"type": STRING}, "A part of another type is left out."),
    )
    tool = any_of(
        components.of(responses.FunctionTool),
        components.of(responses.CustomTool),
        record({"type": STRING}, "A tool of another type is left out."),
    )
    components.given = (
        (openai.Part, any_of(_TEXT, _MEDIA)),
        (openai.Prompt, _PROMPT),
        (anthropic.Block, {"$ref": "#/components/schemas/AnthropicBlock"}),
        (responses.Part, part),
        (responses.Tool, tool),
        (responses.Item, {"$ref": "#/components/schemas/ResponsesItem"}),
        (responses.ToolChoice, nullable(any_of(STRING, OBJECT))),
    )
    components.add({"AnthropicBlock": _blocks(components), "ResponsesItem": _items(components)})
    return components
