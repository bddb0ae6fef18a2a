"""The table of tool-call formats: what opens a call, what closes it, who reads what is between."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from cortex.text.tools.body import CallBody
from cortex.text.tools.hermes import HermesBody


@attrs.frozen
class ToolFormat:
    """One family's way to write a call in text."""

    name: str
    open: str
    close: str
    body: Callable[[], CallBody]
    # All of these stand in the chat template of a model that writes this format.
    template_signs: tuple[str, ...]


FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        name="hermes",
        open="<tool_call>",
        close="</tool_call>",
        body=HermesBody,
        template_signs=("<tool_call>", "</tool_call>", "arguments"),
    ),
)


def find_format(template_source: str) -> ToolFormat | None:
    """The format that a model with this chat template writes; None where it is not known here."""
    for tool_format in FORMATS:
        if all(sign in template_source for sign in tool_format.template_signs):
            return tool_format
    return None
