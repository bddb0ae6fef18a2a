"""Request bodies that came compressed: gzip, deflate and zstd, decoded under a cap.

A body may be small and its content endless, so no step yields more than a bounded piece, and the
caller is cut off at the cap, whatever the body claims of itself. One encoding only: a chain of them
has no use but harm.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import trio

from cortex.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType, clip

PIECE = 256 * 1024  # bytes of content between two looks at the cap and at other tasks
# RFC 8878 3.1.1.1.2: decoders should support 8 MiB, and may refuse more.
ZSTD_WINDOW = 8 * 1024 * 1024
# One block of 4 bytes may stand for 128 KiB (RFC 8878 3.1.1.2.3), and the library has no bound on
# what one call returns: this much input gives 8 MiB at most.
ZSTD_SLICE = 256
MAX_MEMBERS = 1000  # of one body: an empty one costs its sender 20 bytes and us a decoder
BREATH = 64  # pieces, however small, between two looks at other tasks

Decoder = Callable[[bytes], Iterator[bytes]]


def decoder_for(encoding: str | None) -> Decoder | None:
    """What reads a body with the content-encoding header *encoding*; None when it is plain.

    UnsupportedMediaType for what we do not read, chains included.
    """
    name = (encoding or "identity").strip().lower()
    if name in ("identity", ""):
        return None
    if name in _DECODERS:
        return _DECODERS[name]
    raise UnsupportedMediaType(
        f"content-encoding {clip(name)} is not supported: gzip, deflate and zstd are",
        code="request_body_encoding_unsupported",
    )


async def decode(body: bytes, decoder: Decoder, limit: int) -> bytes:
    """The content of *body*. PayloadTooLarge beyond *limit* bytes, BadRequest when corrupt."""
    content = bytearray()
    try:
        for number, piece in enumerate(decoder(body)):
            content += piece
            if len(content) > limit:
                raise PayloadTooLarge(
                    f"the request body is larger than {limit // (1024 * 1024)} MiB once decoded",
                    code="request_body_too_large_after_decoding",
                )
            if len(piece) >= PIECE or number % BREATH == BREATH - 1:
                await trio.lowlevel.checkpoint()
    except _Corrupt as exc:
        raise BadRequest(
            "the request body is not what its content-encoding says",
            code="request_body_encoding_invalid",
        ) from exc
    return bytes(content)


class _Corrupt(Exception):
    """The body is not in the encoding it claims."""


def _zlib_members(body: bytes, window_bits: int) -> Iterator[bytes]:
    """The content of *body*: one or more complete members (RFC 1952 2.2)."""
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(window_bits)
        while not member.eof:
            try:
                piece = member.decompress(body, PIECE)
            except zlib.error as exc:
                raise _Corrupt(str(exc)) from exc
            body = member.unconsumed_tail
            if not piece and not body and not member.eof:
                raise _Corrupt("it ends early")
            yield piece
        body = member.unused_data
        if not body:
            return
    raise _Corrupt("it has too many members")


def _gzip(body: bytes) -> Iterator[bytes]:
    return _zlib_members(body, 16 + zlib.MAX_WBITS)


def _deflate(body: bytes) -> Iterator[bytes]:
    """RFC 9110 8.4.1.2 means zlib's format; some clients send it without zlib's head."""
    wrapped = len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _zlib_members(body, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)


def _zstd(body: bytes) -> Iterator[bytes]:
    import zstandard  # few clients compress, and it takes 3 MB

    context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    frame: Any = None
    frames = 0
    for start in range(0, len(body), ZSTD_SLICE):
        rest = body[start : start + ZSTD_SLICE]
        while rest:
            if frame is None or frame.eof:
                frame, frames = context.decompressobj(), frames + 1
                if frames > MAX_MEMBERS:
                    raise _Corrupt("it has too many frames")
            try:
                yield frame.decompress(rest)
            except zstandard.ZstdError as exc:
                raise _Corrupt(str(exc)) from exc
            rest = frame.unused_data
    if frame is None or not frame.eof:
        raise _Corrupt("it ends early")


_DECODERS: dict[str, Decoder] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
