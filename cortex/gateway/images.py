"""What the gateway does about images: has those fetched that a client names by URL, where the
operator allows it, and refuses them for models that are known to take text only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from cortex.config.catalogue import CatalogueEntry
from cortex.errors import BadRequest
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.image_fetch import FetchFailed, ImageFetcher
from cortex.translate.conversation import Conversation, Image, ToolResult
from cortex.wire import images

VISION = "vision"  # among a model's capabilities
MAX_REMOTE = 20  # images of one request that are fetched
MAX_TOTAL = 64 << 20  # characters of base64 of these

Json = dict[str, Any]


@attrs.frozen(eq=False)
class ImageGate:
    """``fetcher`` is None where nothing is fetched: then the dialects refuse what is remote."""

    names: ModelNames
    fleet: Fleet
    fetcher: ImageFetcher | None = None

    async def fetched(self, body: Json, *, dotted: bool = False) -> Json:
        """*body* with its remote images in it, of whatever dialect it is; itself where there are
        none. `BadRequest` with the path of one that cannot be had, *dotted* as Anthropic's are."""
        if self.fetcher is None or not any(remote_images(body)):
            return body
        body = copy.deepcopy(body)
        slots = list(remote_images(body, dotted=dotted))
        if len(slots) > MAX_REMOTE:
            raise BadRequest(f"at most {MAX_REMOTE} images are fetched for one request")
        budget = MAX_TOTAL
        for slot in slots:  # one after the other, so that what is too much is never held
            try:
                media_type, data = await self.fetcher.fetch(slot.url)
            except FetchFailed as exc:
                raise BadRequest(f"{slot.path}: {exc}", param=slot.path) from exc
            budget -= len(data)
            if budget < 0:
                text = f"the images exceed {MAX_TOTAL >> 20} MiB together"
                raise BadRequest(f"{slot.path}: {text}", param=slot.path)
            slot.put(media_type, data)
        return body

    def admit(self, name: str, paths: Sequence[str]) -> None:
        """`BadRequest` with the first of *paths*, where images are, if the model *name* is known to
        take text only; `ModelNotFound` if there is none."""
        if not paths:
            return
        resolved = self.names.resolve(name)
        if sees(resolved.entry, self.fleet.replicas(resolved.model)) is False:
            path = paths[0]
            raise BadRequest(
                f"{path}: this model takes text only, not images", param=path, code="invalid_value"
            )


def sees(entry: CatalogueEntry | None, replicas: Sequence[Replica]) -> bool | None:
    """Whether a model takes images; None where nobody knows, which is for its node to say then."""
    if entry is not None and VISION in entry.capabilities:
        return True
    alive = [replica for replica in replicas if replica.node.healthy]
    if any(not replica.node.lifecycle for replica in alive):
        return None  # an engine of another kind, that tells nothing of its models
    told = [r.model.capabilities for r in alive if r.model.capabilities is not None]
    return any(VISION in words for words in told) if told else None


def image_paths(conversation: Conversation) -> list[str]:
    """Where the images of *conversation* are, in the words of its dialect."""
    found: list[str] = []
    for turn in conversation.turns:
        for block in turn.blocks:
            inner = block.content if isinstance(block, ToolResult) else (block,)
            found += [each.path for each in inner if isinstance(each, Image)]
    return found


@attrs.frozen(eq=False)
class Slot:
    """An image that is named by ``url``; ``put`` takes a media type and base64 in its place."""

    path: str
    url: str
    put: Callable[[str, str], None]


def remote_images(body: Json, *, dotted: bool = False) -> Iterator[Slot]:
    """The images of *body* that are named by an http URL, wherever a dialect has them. What a tool
    was called with is the client's own data and is not looked at. Never raises."""
    for member in ("messages", "input"):
        items = body.get(member)
        if isinstance(items, list):
            yield from _within(items, member, dotted, 0)


def _within(items: list[Any], path: str, dotted: bool, depth: int) -> Iterator[Slot]:
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        here = f"{path}.{index}" if dotted else f"{path}[{index}]"
        slot = _slot(item, here)
        if slot is not None:
            yield slot
        for member in ("content", "output"):  # of a message, a result, a call's output
            inner = item.get(member)
            if isinstance(inner, list) and depth < 3:
                yield from _within(inner, f"{here}.{member}", dotted, depth + 1)


def _slot(item: Json, path: str) -> Slot | None:
    kind = item.get("type")
    if kind == "image_url":
        given = item.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given

        def put_part(media_type: str, data: str) -> None:
            rest = given if isinstance(given, dict) else {}
            item["image_url"] = {**rest, "url": images.to_data_url(media_type, data)}

        return _remote(f"{path}.image_url", url, put_part)
    if kind == "input_image":

        def put_input(media_type: str, data: str) -> None:
            item["image_url"] = images.to_data_url(media_type, data)

        return _remote(f"{path}.image_url", item.get("image_url"), put_input)
    source = item.get("source")
    if kind == "image" and isinstance(source, dict) and source.get("type") == "url":

        def put_source(media_type: str, data: str) -> None:
            item["source"] = {"type": "base64", "media_type": media_type, "data": data}

        return _remote(f"{path}.image.source.url", source.get("url"), put_source)
    return None


def _remote(path: str, url: Any, put: Callable[[str, str], None]) -> Slot | None:
    if isinstance(url, str) and not url.startswith("data:"):
        return Slot(path, url, put)
    return None
