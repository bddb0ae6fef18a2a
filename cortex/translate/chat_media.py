"""Images in OpenAI's chat requests: checked in place, since these bodies pass as they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cortex.errors import BadRequest
from cortex.wire import images


def check_images(body: Mapping[str, Any]) -> list[str]:
    """The paths of the image parts in *body*, a chat request's whose shape is checked already.
    `BadRequest` for an image that would have to be fetched, or is none."""
    found: list[str] = []
    for path, part in _image_parts(body):
        given = part.get("image_url")
        if isinstance(given, dict):
            path, url = f"{path}.image_url.url", given.get("url")
        else:
            path, url = f"{path}.image_url", given  # as some clients write it
        found.append(path.partition(".image_url")[0])
        _check(url, path)
    return found


def _check(url: Any, path: str) -> None:
    if not isinstance(url, str) or not url:
        raise _bad(path, "a data URL with the image is needed", "missing_required_parameter")
    if not url.startswith("data:"):
        raise _bad(path, "this server does not fetch URLs; send the image as a data URL")
    try:
        images.from_data_url(url)
    except images.ImageError as exc:
        raise _bad(path, str(exc), exc.code) from exc


def _image_parts(body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, message in enumerate(body["messages"]):
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if part.get("type") == "image_url":
                yield f"messages[{index}].content[{number}]", part


def _bad(path: str, text: str, code: str | None = None) -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path, code=code)
