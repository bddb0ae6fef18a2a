"""Messages -> prompt text, by the very template that is shipped with cortex/demo.

Plain jinja2 with the settings that Hugging Face uses for chat templates, so that training needs no
transformers; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

TEMPLATE_FILE = "chat_template.jinja"


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class Renderer:
    def __init__(self, template: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(template)

    @classmethod
    def from_directory(cls, directory: Path) -> Renderer:
        return cls((directory / TEMPLATE_FILE).read_text(encoding="utf-8"))

    def prompt(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        enable_thinking: bool = False,
    ) -> str:
        """The text that the model continues: it ends where the assistant's answer begins."""
        return self._template.render(
            messages=messages,
            tools=tools or None,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
