from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from fakes.images import data_url, encoded, gif_bytes, jpeg_bytes, png_bytes, webp_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.wire.images import (
    GIF,
    JPEG,
    MAX_BYTES,
    MAX_FRAMES,
    MAX_SIDE,
    MEDIA_TYPES,
    PNG,
    WEBP,
    ImageError,
    check,
    checked,
    from_data_url,
)

MAKERS = {
    PNG: png_bytes,
    GIF: gif_bytes,
    JPEG: jpeg_bytes,
    WEBP: webp_bytes,
}
KINDS = [*MAKERS.items(), *((WEBP, lambda w, h, k=k: webp_bytes(w, h, k)) for k in (b"VP8L",))]
KINDS += [(WEBP, lambda w, h: webp_bytes(w, h, b"VP8 "))]
VP8_SIDE = 16_383  # what its 14 bits hold


@pytest.mark.parametrize(("media_type", "make"), KINDS)
def test_the_size_is_read_from_every_kind_of_header(media_type, make):
    check(media_type, make(640, 480))
    check(media_type, make(1, 1))
    side = VP8_SIDE if media_type == WEBP else MAX_SIDE
    check(media_type, make(side, 16))
    check(media_type, make(16, side))
    for width, height in ((10_000, 10_000), (side, side)):
        with pytest.raises(ImageError, match=f"{width} x {height}") as caught:
            check(media_type, make(width, height))
        assert caught.value.code == "image_dimensions_too_large"


@pytest.mark.parametrize("media_type", [PNG, GIF, JPEG])
def test_a_bomb_is_known_by_its_header(media_type):
    with pytest.raises(ImageError, match="image exceeds"):
        check(media_type, MAKERS[media_type](50_000, 50_000))


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_bytes_of_another_kind_are_refused(media_type):
    for other, make in MAKERS.items():
        if other != media_type:
            with pytest.raises(ImageError, match="does not match the media type"):
                check(media_type, make())
    with pytest.raises(ImageError, match="does not match"):
        check(media_type, b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(ImageError, match="does not match"):
        check(media_type, b"")


# The bytes that a header needs, of the smallest image of each kind.
NEEDED = {PNG: 24, GIF: 10, JPEG: 17, WEBP: 25}


@pytest.mark.parametrize(("media_type", "make"), KINDS)
def test_a_header_that_is_cut_off_is_no_image(media_type, make):
    whole = make(3, 3)
    check(media_type, whole)
    for end in range(NEEDED[media_type]):
        with pytest.raises(ImageError, match=r"could not process image|does not match"):
            check(media_type, whole[:end])


@pytest.mark.parametrize("media_type", [PNG, GIF, JPEG])
def test_no_pixels_are_no_image(media_type):
    with pytest.raises(ImageError, match="could not process image"):
        check(media_type, MAKERS[media_type](0, 5))


def test_a_jpegs_size_is_found_behind_its_other_segments():
    segment = b"\xff\xe1" + struct.pack(">H", 60_000) + b"\xff\xc0" * 29_999
    check(JPEG, jpeg_bytes(5, 5, before=segment * 3 + b"\xff\xff\xff\x01"))
    with pytest.raises(ImageError, match="50000"):
        check(JPEG, jpeg_bytes(50_000, 50_000, before=segment))


def test_a_jpeg_of_endless_segments_is_given_up():
    with pytest.raises(ImageError, match="could not process image"):
        check(JPEG, jpeg_bytes(5, 5, before=(b"\xff\xe1" + struct.pack(">H", 2)) * 5000))


def test_animations_have_an_end():
    frame = b"\x21\xf9\x04\0\0\0\0\0"
    check(GIF, gif_bytes() + frame * MAX_FRAMES)
    with pytest.raises(ImageError, match="frames"):
        check(GIF, gif_bytes() + frame * (MAX_FRAMES + 1))
    control = struct.pack(">I", 8) + b"acTL" + struct.pack(">II", 10_000, 0) + b"crc."
    whole = png_bytes()
    with pytest.raises(ImageError, match="frames"):
        check(PNG, whole[:33] + control + whole[33:])
    with pytest.raises(ImageError, match="frames"):
        check(WEBP, webp_bytes() + b"ANMF\0\0\0\0" * (MAX_FRAMES + 1))


def test_what_is_too_large_is_refused_before_it_is_decoded():
    with pytest.raises(ImageError, match="image exceeds 20 MB maximum"):
        checked(PNG, "A" * (MAX_BYTES * 2))


@pytest.mark.parametrize(
    ("url", "member"),
    [
        ("data:image/png;base64", "url"),
        ("data:image/png,abc", "url"),
        ("image/png;base64,abc", "url"),
        ("data:text/html;base64,PGI+", "media_type"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "media_type"),
        ("data:image/tiff;base64,SUkqAA==", "media_type"),
        ("data:image/png;base64,", "data"),
        (data_url(png_bytes())[:-1], "data"),
        (data_url(png_bytes()).replace("IHDR"[0], "I") + "\n", "data"),
        (data_url(png_bytes())[:60] + " " + data_url(png_bytes())[60:], "data"),
        (data_url(png_bytes()).replace("+", "-").replace("/png", "/png")[:-4] + "_-==", "data"),
    ],
)
def test_a_data_url_that_is_none_is_refused(url, member):
    with pytest.raises(ImageError) as caught:
        from_data_url(url)
    assert caught.value.member == member


def test_a_data_url_is_read():
    assert from_data_url(data_url(png_bytes())) == (PNG, encoded(png_bytes()))
    assert from_data_url(data_url(jpeg_bytes(), "image/jpg"))[0] == JPEG
    assert from_data_url(data_url(png_bytes(), "IMAGE/PNG"))[0] == PNG


heads = st.sampled_from([make() for make in MAKERS.values()])


@settings(max_examples=300, deadline=None)
@given(heads, st.integers(0, 40), st.binary(max_size=60), st.sampled_from(MEDIA_TYPES))
def test_whatever_the_bytes_they_pass_or_are_refused(head, end, rest, media_type):
    with suppress(ImageError):
        check(media_type, head[:end] + rest)
