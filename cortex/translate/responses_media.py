"""Images and files in Responses requests. URLs and file ids are refused, never fetched."""

from __future__ import annotations

import base64
import binascii

from cortex.errors import BadRequest
from cortex.translate.conversation import Document, Image
from cortex.wire import images
from cortex.wire import responses as wire

_TEXT_SUFFIXES = (".txt", ".md", ".csv", ".json", ".log", ".xml", ".yaml", ".yml", ".html")


def image(part: wire.ImagePart, path: str) -> Image:
    """The image as a data URL, its bytes checked against its media type."""
    if part.image_url is None:
        if part.file_id is not None:
            raise _bad(f"{path}.file_id", "this server keeps no files; send a data URL")
        raise _bad(f"{path}.image_url", "required field missing", "missing_required_parameter")
    if not part.image_url.startswith("data:"):
        text = "this server does not fetch URLs; send the image as a data URL"
        raise _bad(f"{path}.image_url", text)
    try:
        return Image(images.to_data_url(*images.from_data_url(part.image_url)), path)
    except images.ImageError as exc:
        raise _bad(f"{path}.image_url", str(exc), exc.code) from exc


def document(part: wire.FilePart, path: str) -> Document:
    """The file's text. Other files than text are refused."""
    if part.file_data is None:
        if part.file_url is not None:
            raise _bad(f"{path}.file_url", "this server does not fetch URLs; send file_data")
        if part.file_id is not None:
            raise _bad(f"{path}.file_id", "this server keeps no files; send file_data")
        raise _bad(f"{path}.file_data", "required field missing", "missing_required_parameter")
    head, comma, data = part.file_data.partition(",")
    if comma and head.startswith("data:"):
        media_type = head.removeprefix("data:").partition(";")[0]
        packed = head.endswith(";base64")
    else:
        media_type, data, packed = "", part.file_data, True
    name = (part.filename or "").lower()
    if media_type == "application/pdf" or name.endswith(".pdf"):
        raise _bad(f"{path}.file_data", "this model does not support pdf input")
    text = media_type.startswith("text/") or media_type == "application/json"
    if not packed or not (text or name.endswith(_TEXT_SUFFIXES)):
        raise _bad(f"{path}.file_data", "this server takes files of text only, in base64")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{path}.file_data", "invalid base64 data") from None
    return Document(content.decode("utf-8", "replace"), title=part.filename)


def _bad(path: str, text: str, code: str | None = None) -> BadRequest:
    return BadRequest(f"{path}: {text}", param=path, code=code)
