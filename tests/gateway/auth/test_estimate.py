from __future__ import annotations

import pytest

from cortex.gateway.auth.estimate import IMAGE_TOKENS, prompt_tokens


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 1),
        (user("x" * 400), 101),
        (user([{"type": "text", "text": "x" * 400}]), 102),
        ({"prompt": [1, 2, 3, 4, 5]}, 5),
        ({"input": ["x" * 40, "y" * 40]}, 20),
        ({"prompt": "x" * 40, "max_tokens": 10**9, "user": "y" * 10**6}, 10),
        ({"messages": 5}, 1),
    ],
)
def test_a_prompt_is_a_token_for_four_characters(body, tokens):
    assert prompt_tokens(body) == tokens


def test_a_picture_counts_as_a_picture_whatever_its_size():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    assert IMAGE_TOKENS <= prompt_tokens(user([part])) < IMAGE_TOKENS + 10


def test_depth_is_no_matter():
    nested: object = "x"
    for _ in range(100_000):
        nested = [nested]
    assert prompt_tokens({"input": nested}) == 1
