from __future__ import annotations

import copy
import json

import pytest
from fakes.images import data_url, png, png_bytes
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import NeuronNode
from cortex.errors import BadRequest, ModelNotFound
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.gateway.image_fetch import FetchFailed
from cortex.gateway.images import MAX_REMOTE, ImageGate, image_paths, remote_images
from cortex.translate.anthropic import read_messages
from cortex.wire import neuron as wire

URL = "https://pics.example/a.png"
OPENAI = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
ANTHROPIC = {"type": "image", "source": {"type": "url", "url": URL}}
RESPONSES = {"type": "input_image", "image_url": URL, "detail": "auto"}


class Fetcher:
    """Has one picture at every address but those with "bad" in them."""

    def __init__(self):
        self.asked = []

    async def fetch(self, url):
        self.asked.append(url)
        if "bad" in url:
            raise FetchFailed("the image could not be fetched")
        return "image/png", png()


def gate(*models: wire.Model, entry: CatalogueEntry | None = None, kind: str = "cortex", **more):
    fleet = Fleet([NeuronNode("a", "http://a:1", kind=kind)], clock=lambda: 0.0)
    if models:
        fleet.polled("a", list(models), wire.Health(1.0), asked_at=0)
    catalogue = Catalogue((entry,) if entry is not None else ())
    return ImageGate(ModelNames(catalogue, fleet), fleet, **more)


def model(*capabilities: str) -> wire.Model:
    return wire.Model("m", wire.LOADED, capabilities=capabilities or None)


def messages(*parts):
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}, *parts]}]}


# Eyes


def test_a_model_that_takes_text_only_is_told_where_the_image_is():
    with pytest.raises(BadRequest) as caught:
        gate(model("text")).admit("m", ["messages[1].content[0]", "messages[2].content[0]"])
    assert caught.value.param == "messages[1].content[0]"
    assert caught.value.message == (
        "messages[1].content[0]: this model takes text only, not images"
    )


def test_a_model_that_sees_and_one_nobody_knows_of_are_asked():
    gate(model("text", "vision")).admit("m", ["x"])
    gate(model()).admit("m", ["x"])
    gate(entry=CatalogueEntry("m")).admit("m", ["x"])
    gate(model("text"), entry=CatalogueEntry("m", capabilities=("vision",))).admit("m", ["x"])


def test_an_engine_of_another_make_is_asked():
    gate(model("text"), kind="openai").admit("m", ["x"])


def test_without_images_nothing_is_looked_up():
    gate().admit("nobody", [])
    with pytest.raises(ModelNotFound):
        gate(model("text")).admit("nobody", ["x"])


# Remote images


@pytest.mark.parametrize(
    ("body", "dotted", "path"),
    [
        (messages(OPENAI), False, "messages[0].content[1].image_url"),
        (messages({**OPENAI, "image_url": URL}), False, "messages[0].content[1].image_url"),
        (messages(ANTHROPIC), True, "messages.0.content.1.image.source.url"),
        (
            messages({"type": "tool_result", "tool_use_id": "t", "content": [ANTHROPIC]}),
            True,
            "messages.0.content.1.content.0.image.source.url",
        ),
        (
            {"model": "m", "input": [{"role": "user", "content": [RESPONSES]}]},
            False,
            "input[0].content[0].image_url",
        ),
        (
            {"model": "m", "input": [{"type": "function_call_output", "output": [RESPONSES]}]},
            False,
            "input[0].output[0].image_url",
        ),
    ],
)
async def test_an_image_is_fetched_wherever_a_dialect_has_it(body, dotted, path):
    before = copy.deepcopy(body)
    (slot,) = remote_images(body, dotted=dotted)
    assert (slot.path, slot.url) == (path, URL)
    fetcher = Fetcher()
    found = await gate(fetcher=fetcher).fetched(body, dotted=dotted)
    assert body == before
    assert fetcher.asked == [URL]
    assert not list(remote_images(found))
    assert png() in repr(found)
    bad = json.loads(json.dumps(body).replace("a.png", "bad.png"))
    with pytest.raises(BadRequest, match="could not be fetched") as caught:
        await gate(fetcher=fetcher).fetched(bad, dotted=dotted)
    assert caught.value.param == path
    assert await gate().fetched(body) is body


async def test_the_rest_of_the_part_stays():
    found = await gate(fetcher=Fetcher()).fetched(messages(OPENAI))
    part = found["messages"][0]["content"][1]
    assert part["image_url"] == {"url": data_url(png_bytes()), "detail": "low"}


async def test_what_is_there_already_and_what_tools_were_called_with_is_left_alone():
    data = {"type": "image_url", "image_url": {"url": data_url(png_bytes())}}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"content": [ANTHROPIC]}}
    body = messages(data, call)
    fetcher = Fetcher()
    assert await gate(fetcher=fetcher).fetched(body) is body
    assert fetcher.asked == []


async def test_only_so_many_are_fetched_for_one_request():
    fetcher = Fetcher()
    await gate(fetcher=fetcher).fetched(messages(*[OPENAI] * MAX_REMOTE))
    assert len(fetcher.asked) == MAX_REMOTE
    with pytest.raises(BadRequest, match="at most"):
        await gate(fetcher=fetcher).fetched(messages(*[OPENAI] * (MAX_REMOTE + 1)))
    assert len(fetcher.asked) == MAX_REMOTE


leaves = st.none() | st.integers() | st.sampled_from([URL, "image", "image_url", "url"])
keys = st.sampled_from(["type", "content", "output", "source", "url", "image_url", "role"])
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "model"]), anything))
def test_whatever_a_body_is_looking_for_images_never_fails(body):
    for slot in remote_images(body):
        slot.put("image/png", "x")
    assert not [slot for slot in remote_images(body) if slot.url == URL]


def test_a_conversation_tells_where_its_images_are():
    source = {"type": "base64", "media_type": "image/png", "data": png()}
    image = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text"}, image]}
    result["content"][0]["text"] = "x"
    body = {
        "model": "m",
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [image, result]},
        ],
    }
    assert image_paths(read_messages(body)) == [
        "messages.1.content.0",
        "messages.1.content.1.content.1",
    ]
