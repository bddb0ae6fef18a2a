"""Images and documents in Anthropic's requests. URLs and file ids are refused, never fetched."""

from __future__ import annotations

import base64
import binascii

from cortex.errors import BadRequest
from cortex.translate.conversation import Image
from cortex.wire import images
from cortex.wire.anthropic import Source, TextBlock


def image(source: Source, path: str) -> Image:
    """The image at *path* as a data URL, its header checked."""
    block, path = path, f"{path}.image.source"
    try:
        if source.type == "url" and source.url is not None and source.url.startswith("data:"):
            return Image(images.to_data_url(*images.from_data_url(source.url)), block)
        if source.type == "base64":
            images.checked(source.media_type, source.data)
            return Image(images.to_data_url(str(source.media_type), str(source.data)), block)
    except images.ImageError as exc:
        member = exc.member if exc.member == "url" else f"base64.{exc.member}"
        raise _bad(f"{path}.{member}", str(exc), exc.code) from exc
    if source.type == "url":
        raise _bad(f"{path}.url", "this server does not fetch URLs; send the image as base64")
    raise _bad(path, "this server keeps no files; send the image as base64")


def document_text(source: Source, path: str) -> str:
    """The document's text."""
    if source.type == "text" and source.data is not None:
        return source.data
    if source.type == "content":
        content = source.content or ()
        if isinstance(content, str):
            return content
        return "\n".join(block.text for block in content if isinstance(block, TextBlock))
    if source.type == "base64" and source.media_type in (None, "application/pdf"):
        raise _bad(path, "this model does not support pdf input")
    if source.type == "base64" and (source.media_type or "").startswith("text/"):
        return _decoded(source.data or "", f"{path}.base64").decode("utf-8", "replace")
    if source.type == "url":
        raise _bad(f"{path}.url", "this server does not fetch URLs; send the document as text")
    raise _bad(path, "this server takes documents of type text or content only")


def _decoded(data: str, path: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{path}.data", "invalid base64 data") from None


def _bad(path: str, text: str, code: str | None = None) -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path, code=code)
