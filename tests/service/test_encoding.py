from __future__ import annotations

import gzip
import os
import zlib

import pytest
import zstandard

from cortex.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from cortex.service.encoding import MAX_MEMBERS, PIECE, decode, decoder_for

CONTENT = os.urandom(1000) + b'{"model": "m"}' * 40_000
LIMIT = len(CONTENT)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes, **fields) -> bytes:
    return zstandard.ZstdCompressor(**fields).compress(data)


PACKED = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip-members": ("gzip", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
    "deflate": ("deflate", zlib.compress),
    "raw-deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd),
    "zstd-frames": ("zstd", lambda data: zstd(data[:7]) + zstd(data[7:])),
    "zstd-checked": ("zstd", lambda data: zstd(data, write_checksum=True)),
}


@pytest.fixture(params=PACKED.values(), ids=PACKED.keys())
def packed(request) -> tuple[str, bytes]:
    name, pack = request.param
    return name, pack(CONTENT)


async def unpack(name: str, body: bytes, limit: int = LIMIT) -> bytes:
    decoder = decoder_for(name)
    assert decoder is not None
    return await decode(body, decoder, limit)


async def refused(name: str, body: bytes) -> bool:
    with pytest.raises(BadRequest) as caught:
        await unpack(name, body)
    return caught.value.error_code == "request_body_encoding_invalid"


async def test_what_was_packed_is_unpacked(packed):
    assert await unpack(*packed) == CONTENT


async def test_a_body_that_ends_early_or_goes_on_is_corrupt(packed):
    name, body = packed
    for cut in (1, 5, len(body) // 2, len(body) - 1, len(body)):
        assert await refused(name, body[: len(body) - cut])
    assert await refused(name, body + b"x")


async def test_what_is_no_such_encoding_is_corrupt(packed):
    assert await refused(packed[0], b"nonsense")
    assert await refused(packed[0], CONTENT[:1000])


async def test_content_over_the_cap_is_told_apart_from_a_body_over_it(packed):
    with pytest.raises(PayloadTooLarge) as caught:
        await unpack(*packed, limit=LIMIT - 1)
    assert caught.value.error_code == "request_body_too_large_after_decoding"


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
async def test_a_bomb_is_stopped_at_the_cap(name, monkeypatch):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd}[name]
    body = pack(bytes(64 * PIECE))
    decoder = decoder_for(name)
    made = 0

    def counted(data):
        nonlocal made
        for piece in decoder(data):
            made += len(piece)
            yield piece

    with pytest.raises(PayloadTooLarge):
        await decode(body, counted, PIECE)
    assert made <= PIECE + 8 * 1024 * 1024


async def test_many_empty_members_are_corrupt():
    body = gzip.compress(b"")
    assert await unpack("gzip", body * MAX_MEMBERS) == b""
    assert await refused("gzip", body * (MAX_MEMBERS + 1))


async def test_many_empty_frames_are_corrupt():
    body = zstd(b"")
    assert await unpack("zstd", body * MAX_MEMBERS) == b""
    assert await refused("zstd", body * (MAX_MEMBERS + 1))


async def test_a_window_of_unreasonable_size_is_refused():
    params = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    assert await refused("zstd", packer.compress(CONTENT) + packer.flush())


@pytest.mark.parametrize("name", [None, "", "identity", " Identity "])
def test_a_plain_body_needs_no_decoder(name):
    assert decoder_for(name) is None


@pytest.mark.parametrize("name", ["br", "gzip, gzip", "gzip,identity", "compress", "x" * 500])
def test_what_we_do_not_read_is_refused(name):
    with pytest.raises(UnsupportedMediaType) as caught:
        decoder_for(name)
    assert caught.value.error_code == "request_body_encoding_unsupported"
    assert len(caught.value.message) < 300


def test_names_of_encodings_are_case_insensitive():
    assert decoder_for("GZip") is decoder_for("gzip")
