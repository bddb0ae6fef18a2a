from __future__ import annotations

import pytest
from fakes.images import data_url, jpeg_bytes, png_bytes

from cortex.errors import BadRequest
from cortex.translate.chat_media import check_images

TEXT = {"type": "text", "text": "x"}


def body(*parts):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [*parts]}]}


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def test_images_are_found_where_they_are():
    parts = body(TEXT, image(data_url(png_bytes())), image(data_url(jpeg_bytes(), "image/jpg")))
    assert check_images(parts) == ["messages[1].content[1]", "messages[1].content[2]"]
    assert check_images(body(TEXT)) == []
    bare = {"type": "image_url", "image_url": data_url(png_bytes())}
    assert check_images(body(bare)) == ["messages[1].content[0]"]


@pytest.mark.parametrize(
    ("part", "path", "words"),
    [
        (image("http://127.0.0.1:1/"), "image_url.url", "does not fetch"),
        (image("https://example.com/a.png"), "image_url.url", "does not fetch"),
        (image("file:///etc/passwd"), "image_url.url", "does not fetch"),
        (image("data:text/html;base64,PGI+"), "image_url.url", "Input should be"),
        (image("data:image/png"), "image_url.url", "expected a data URL"),
        (image(data_url(png_bytes(50_000, 50_000))), "image_url.url", "image exceeds"),
        (image(""), "image_url.url", "is needed"),
        (image(5), "image_url.url", "is needed"),
        ({"type": "image_url"}, "image_url", "is needed"),
        ({"type": "image_url", "image_url": "https://x/"}, "image_url", "does not fetch"),
    ],
)
def test_what_is_none_is_refused_with_its_path(part, path, words):
    with pytest.raises(BadRequest, match=words) as caught:
        check_images(body(TEXT, part))
    assert caught.value.param == f"messages[1].content[1].{path}"
    assert caught.value.message.startswith(caught.value.param)
