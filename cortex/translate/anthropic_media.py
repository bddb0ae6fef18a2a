"""Images and documents in Anthropic's requests. URLs and file ids are refused, never fetched."""

from __future__ import annotations

import base64
import binascii

from cortex.errors import BadRequest
from cortex.translate.conversation import Image
from cortex.wire.anthropic import Source, TextBlock

# The first bytes of each kind; WebP has its mark behind the RIFF chunk's length.
_MAGIC: dict[str, tuple[tuple[int, bytes], ...]] = {
    "image/jpeg": ((0, b"\xff\xd8\xff"),),
    "image/png": ((0, b"\x89PNG\r\n\x1a\n"),),
    "image/gif": ((0, b"GIF8"),),
    "image/webp": ((0, b"RIFF"), (8, b"WEBP")),
}


def image(source: Source, path: str) -> Image:
    """The image as a data URL, its bytes checked against its media type."""
    if source.type == "url" and source.url is not None and source.url.startswith("data:"):
        return _data_url(source.url, path)
    if source.type == "base64":
        return _base64(source.media_type, source.data, f"{path}.base64")
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


def _data_url(url: str, path: str) -> Image:
    head, comma, data = url.partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if not comma or not head.endswith(";base64"):
        raise _bad(f"{path}.url", "expected a data URL in base64")
    return _base64(media_type, data, f"{path}.base64")


def _base64(media_type: str | None, data: str | None, path: str) -> Image:
    if media_type not in _MAGIC:
        allowed = ", ".join(f"'{kind}'" for kind in _MAGIC)
        raise _bad(f"{path}.media_type", f"Input should be {allowed}")
    if not data:
        raise _bad(f"{path}.data", "Field required")
    content = _decoded(data, path)
    if not all(content.startswith(mark, at) for at, mark in _MAGIC[media_type]):
        raise _bad(f"{path}.data", f"the image does not match the media type {media_type}")
    return Image(f"data:{media_type};base64,{data}")


def _decoded(data: str, path: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{path}.data", "invalid base64 data") from None


def _bad(path: str, text: str) -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path)
