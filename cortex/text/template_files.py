"""Where a checkpoint keeps its chat templates, in the order in which Hugging Face looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortex.errors import CheckpointError
from cortex.text.tokenizer import read_object

DEFAULT, TOOL_USE = "default", "tool_use"
MAX_SOURCE = 4 << 20  # bytes


def read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Template sources by name, `DEFAULT` among them; empty where the checkpoint has none.

    chat_template.jinja goes before chat_template.json, that before tokenizer_config.json
    (*config*); additional_chat_templates/*.jinja are named by their files.
    """
    source = _read(directory / "chat_template.jinja")
    if source is not None:
        extra = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        named = {path.stem: text for path in extra if (text := _read(path)) is not None}
        return {**named, DEFAULT: source}
    for document in (read_object(directory / "chat_template.json"), config):
        found = _from_value((document or {}).get("chat_template"))
        if found:
            return found
    return {}


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_SOURCE:
            raise CheckpointError(f"{path.name} is larger than {MAX_SOURCE >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name} is not UTF-8") from error


def _from_value(value: Any) -> dict[str, str]:
    """``chat_template``: one source, or a list of ``{name, template}``, or an object of them."""
    if isinstance(value, str) and value:
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {e.get("name"): e.get("template") for e in value if isinstance(e, Mapping)}
    if not isinstance(value, Mapping):
        return {}
    named = {n: s for n, s in value.items() if isinstance(n, str) and isinstance(s, str)}
    if named and DEFAULT not in named:
        raise CheckpointError("the checkpoint's chat templates have no default among them")
    return named
