"""Images in requests, judged by their headers: no pixel is decoded here or anywhere in the gateway.

What is checked: base64 without anything foreign in it, a media type that the first bytes bear out,
and the size that the header claims, since whoever decodes the image has to make room for that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

PNG, JPEG, GIF, WEBP = "image/png", "image/jpeg", "image/gif", "image/webp"
MEDIA_TYPES = (JPEG, PNG, GIF, WEBP)
MAX_BYTES = 20 * 1024 * 1024  # OpenAI's limit an image; Anthropic's is 5 MB
MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 40_000_000  # 120 MB decoded as RGB
MAX_FRAMES = 200
MAX_SEGMENTS = 1000  # of a JPEG before its frame header; real ones have about ten

Size = tuple[int, int]


class ImageError(ValueError):
    """``member`` is what is wrong of a source: media_type, data or url; ``code`` may be None."""

    def __init__(self, message: str, member: str = "data", code: str | None = None) -> None:
        super().__init__(message)
        self.member = member
        self.code = code


def checked(media_type: str | None, data: str | None) -> bytes:
    """The bytes of *data*, which is base64 of an image of *media_type*, or `ImageError`."""
    if media_type not in MEDIA_TYPES:
        allowed = ", ".join(f"'{kind}'" for kind in MEDIA_TYPES)
        raise ImageError(f"Input should be {allowed}", "media_type")
    if not data:
        raise ImageError("Field required")
    if len(data) > MAX_BYTES * 4 // 3 + 4:
        raise _too_large(len(data) * 3 // 4)
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("invalid base64 data") from None
    check(media_type, content)
    return content


def check(media_type: str, content: bytes) -> None:
    """`ImageError` unless *content* begins as an image of *media_type* that can be afforded."""
    if len(content) > MAX_BYTES:
        raise _too_large(len(content))
    if kind_of(content) != media_type:
        raise ImageError(f"the image does not match the media type {media_type}")
    size = _READERS[media_type](content)
    if size is None or 0 in size:
        raise ImageError("could not process image: its header is incomplete")
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"image exceeds {MAX_SIDE} pixels a side or {MAX_PIXELS} in all: {size[0]} x {size[1]}",
            code="image_dimensions_too_large",
        )
    if _frames(media_type, content) > MAX_FRAMES:
        raise ImageError(f"image exceeds {MAX_FRAMES} frames")


def from_data_url(url: str) -> tuple[str, str]:
    """The media type and the base64 in *url*, checked; or `ImageError`."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ImageError("expected a data URL in base64", "url")
    media_type = head.removeprefix("data:").removesuffix(";base64").lower()
    if media_type == "image/jpg":
        media_type = JPEG  # which is what clients mean by it
    checked(media_type, data)
    return media_type, data


def to_data_url(media_type: str, data: str) -> str:
    return f"data:{media_type};base64,{data}"


def kind_of(content: bytes) -> str | None:
    """The media type by the first bytes."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if content.startswith(b"\xff\xd8\xff"):
        return JPEG
    if content.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return WEBP
    return None


def _too_large(size: int) -> ImageError:
    return ImageError(
        f"image exceeds {MAX_BYTES >> 20} MB maximum: {size} bytes > {MAX_BYTES} bytes"
    )


def _png(content: bytes) -> Size | None:
    if content[12:16] != b"IHDR" or len(content) < 24:
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _gif(content: bytes) -> Size | None:
    if len(content) < 10:
        return None
    return int.from_bytes(content[6:8], "little"), int.from_bytes(content[8:10], "little")


def _webp(content: bytes) -> Size | None:
    kind, body = content[12:16], content[20:30]
    if len(body) < (5 if kind == b"VP8L" else 10):
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = body[6:8], body[8:10]
        return (
            int.from_bytes(width, "little") & 0x3FFF,
            int.from_bytes(height, "little") & 0x3FFF,
        )
    return None


def _jpeg(content: bytes) -> Size | None:
    """From the frame header (ITU-T T.81, B.2.2): the first segment from C0 to CF that is none of
    the tables C4, C8 and CC."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        while content[at : at + 2] == b"\xff\xff":
            at += 1  # fill bytes
        if at + 4 > len(content) or content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if at + 9 > len(content):
                return None
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2  # without a length
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if length < 2 or marker in (0xD9, 0xDA):
            return None
        at += 2 + length
    return None


def _frames(media_type: str, content: bytes) -> int:
    """At most how many frames an animation has: for a GIF, how often an animated frame's block
    begins (three bytes that pixels spell once in 16 million)."""
    if media_type == GIF:
        return content.count(b"\x21\xf9\x04")
    if media_type == PNG:
        control = content.find(b"acTL", 0, max(0, content.find(b"IDAT")))
        if control >= 0:
            return int.from_bytes(content[control + 4 : control + 8], "big")
    if media_type == WEBP:
        return content.count(b"ANMF")
    return 1


_READERS: dict[str, Callable[[bytes], Size | None]] = {
    PNG: _png,
    JPEG: _jpeg,
    GIF: _gif,
    WEBP: _webp,
}
