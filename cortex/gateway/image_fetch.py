"""Fetching an image that a client names by URL, where the operator allows it.

Each name is resolved once and the address that was judged is the one that is asked, so that a name
which changes its mind (DNS rebinding) gains nothing. Redirects are judged like the first URL.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import httpx
import trio

from cortex import __version__
from cortex.config.gateway import ImageSettings
from cortex.gateway.address_policy import NotAllowed, Target, is_public, target_of
from cortex.service import logs
from cortex.wire import images

MAX_REDIRECTS = 3
MAX_AT_A_TIME = 8
MAX_CONNECT_SECONDS = 5.0
CHUNK = 64 * 1024  # bytes

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # a name's addresses

log = logs.get("gateway.images")


class FetchFailed(Exception):
    """The text is for the client: it says nothing of what is or is not behind the gateway."""


@attrs.frozen(eq=False)
class ImageFetcher:
    """``client`` follows no redirects and heeds no proxy of the environment."""

    settings: ImageSettings
    client: httpx.AsyncClient
    resolve: Resolve
    limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_AT_A_TIME))

    async def fetch(self, url: str) -> tuple[str, str]:
        """The media type and the base64 of the image at *url*. `FetchFailed` where there is none,
        where it may not be asked for, or when it does not come in time."""
        with trio.move_on_after(self.settings.timeout_seconds):
            try:
                async with self.limiter:
                    return await self._follow(url)
            except (NotAllowed, images.ImageError) as exc:
                raise FetchFailed(str(exc)) from exc
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
                log.info("an image was not fetched", cause=logs.cause_chain(exc))
                raise FetchFailed("the image could not be fetched") from exc
        raise FetchFailed("the image did not come in time")

    async def _follow(self, url: str) -> tuple[str, str]:
        for _ in range(MAX_REDIRECTS + 1):
            target = target_of(url, allow_http=self.settings.allow_http)
            address = await self._address(target)
            async with self._asked(target, address) as response:
                if response.has_redirect_location:
                    url = str(httpx.URL(url).join(response.headers["location"]))
                    continue
                return await self._image(response)
        raise FetchFailed("the image is behind too many redirects")

    async def _address(self, target: Target) -> str:
        """The address to ask: only where every one that the name has is public."""
        try:
            found = await self.resolve(target.host, target.port)
        except OSError:
            raise FetchFailed("the image could not be fetched") from None
        if not found or not all(map(is_public, found)):
            raise NotAllowed("the URL leads to an address that is not on the open internet")
        return found[0]

    @asynccontextmanager
    async def _asked(self, target: Target, address: str) -> AsyncIterator[httpx.Response]:
        host = f"[{address}]" if ":" in address else address
        request = self.client.build_request(
            "GET",
            f"{target.scheme}://{host}{target.path}",
            headers={"host": target.host},
            extensions={"sni_hostname": target.host},  # whose certificate is asked for, and checked
        )
        response = await self.client.send(request, stream=True)
        try:
            yield response
        finally:
            with trio.move_on_after(1, shield=True):
                await response.aclose()

    async def _image(self, response: httpx.Response) -> tuple[str, str]:
        if response.status_code != 200:
            raise FetchFailed("the image could not be fetched")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in images.MEDIA_TYPES:
            raise FetchFailed("what was fetched is no image that is taken")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchFailed("what was fetched is compressed a second time")
        limit = self.settings.max_mb << 20
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise FetchFailed(f"image exceeds {self.settings.max_mb} MB maximum")
        content = bytearray()
        async for chunk in response.aiter_raw(CHUNK):
            content += chunk
            if len(content) > limit:
                raise FetchFailed(f"image exceeds {self.settings.max_mb} MB maximum")
        images.check(media_type, bytes(content))
        return media_type, base64.b64encode(content).decode("ascii")


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of *host*, from the system's resolver."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


@asynccontextmanager
async def open_fetcher(settings: ImageSettings) -> AsyncIterator[ImageFetcher | None]:
    """The fetcher as configured; None, and no client at all, where nothing may be fetched."""
    if not settings.fetch:
        yield None
        return
    timeout = httpx.Timeout(settings.timeout_seconds, connect=MAX_CONNECT_SECONDS)
    async with httpx.AsyncClient(
        headers={"user-agent": f"cortex/{__version__}", "accept-encoding": "identity"},
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
    ) as client:
        yield ImageFetcher(settings, client, resolve)
