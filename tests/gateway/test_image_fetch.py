from __future__ import annotations

from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.images import encoded, gif_bytes, png_bytes

from cortex.config.gateway import ImageSettings
from cortex.gateway.image_fetch import FetchFailed, ImageFetcher, open_fetcher

URL = "https://pics.example/a.png"
PICTURE = png_bytes()


class Web:
    """What there is to fetch: names with their addresses, and an answer for each request."""

    def __init__(self, answer=None, addresses=None):
        self.answer = answer or (lambda request: picture())
        self.addresses = addresses or {"pics.example": [["8.8.8.8"]]}
        self.asked: list[httpx.Request] = []
        self.resolved: list[str] = []

    async def resolve(self, host, port):
        self.resolved.append(host)
        if host not in self.addresses:
            raise OSError("no such name")
        answers = self.addresses[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def handle(self, request):
        self.asked.append(request)
        found = self.answer(request)
        return await found if hasattr(found, "__await__") else found


def picture(content=PICTURE, media_type="image/png", **headers):
    shown = {"content-type": media_type, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return httpx.Response(200, headers=shown, stream=httpx.ByteStream(content))


@asynccontextmanager
async def fetching(web, **settings):
    client = httpx.AsyncClient(transport=httpx.MockTransport(web.handle), follow_redirects=False)
    async with client:
        yield ImageFetcher(ImageSettings(fetch=True, **settings), client, web.resolve)


async def fetch(web, url=URL, **settings):
    async with fetching(web, **settings) as fetcher:
        return await fetcher.fetch(url)


async def refused(web, url=URL, **settings):
    with pytest.raises(FetchFailed) as caught:
        await fetch(web, url, **settings)
    return str(caught.value)


async def test_an_image_is_fetched_from_the_address_that_was_judged():
    web = Web()
    assert await fetch(web) == ("image/png", encoded(PICTURE))
    (request,) = web.asked
    assert str(request.url) == "https://8.8.8.8/a.png"
    assert request.headers["host"] == "pics.example"
    assert request.extensions["sni_hostname"] == "pics.example"
    assert web.resolved == ["pics.example"]


async def test_an_address_of_ipv6_is_asked_too():
    web = Web(addresses={"pics.example": [["2606:4700:4700::1111"]]})
    await fetch(web)
    assert web.asked[0].url.host == "2606:4700:4700::1111"


@pytest.mark.parametrize(
    "url", ["http://pics.example/", "file:///etc/passwd", "https://127.0.0.1/", "https://0x7f.1/"]
)
async def test_what_is_not_allowed_is_neither_resolved_nor_asked(url):
    web = Web()
    assert await refused(web, url)
    assert (web.asked, web.resolved) == ([], [])


@pytest.mark.parametrize("found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"], []])
async def test_a_name_that_leads_inside_is_not_asked(found):
    web = Web(addresses={"pics.example": [found]})
    assert "open internet" in await refused(web)
    assert web.asked == []


async def test_a_name_that_is_none_says_no_more_than_a_host_that_is_away():
    def away(request):
        raise httpx.ConnectError("refused")

    assert await refused(Web(addresses={"x": []})) == await refused(Web(away))


async def test_a_name_is_resolved_once_whatever_it_says_later():
    web = Web(addresses={"pics.example": [["8.8.8.8"], ["127.0.0.1"]]})
    await fetch(web)
    assert web.resolved == ["pics.example"]


def redirects(*urls):
    """Each request is sent on to the next of *urls*; then there is a picture."""
    left = list(urls)

    def answer(request):
        return httpx.Response(302, headers={"location": left.pop(0)}) if left else picture()

    return answer


async def test_a_redirect_is_followed_and_judged_alike():
    addresses = {"pics.example": [["8.8.8.8"]], "other.example": [["1.1.1.1"]]}
    web = Web(redirects("https://other.example/b"), addresses)
    assert await fetch(web)
    assert [each.url.host for each in web.asked] == ["8.8.8.8", "1.1.1.1"]
    web = Web(redirects("/c"), addresses)
    await fetch(web)
    assert web.asked[1].headers["host"] == "pics.example"
    assert web.asked[1].url.path == "/c"


@pytest.mark.parametrize(
    "to",
    [
        *("http://127.0.0.1/", "https://127.0.0.1/", "http://pics.example/", "file:///etc/passwd"),
        *("https://inside.example/", "https://[::1]/", "//inside.example/"),
    ],
)
async def test_a_redirect_to_the_inside_is_not_followed(to):
    addresses = {"pics.example": [["8.8.8.8"]], "inside.example": [["10.0.0.1"]]}
    web = Web(redirects(to), addresses)
    assert await refused(web)
    assert len(web.asked) == 1


async def test_a_name_that_turns_inward_at_the_second_look_is_not_asked_again():
    web = Web(redirects("/again"), {"pics.example": [["8.8.8.8"], ["127.0.0.1"]]})
    assert "open internet" in await refused(web)
    assert len(web.asked) == 1


async def test_redirects_have_an_end():
    web = Web(redirects(*["/x"] * 10))
    assert "redirects" in await refused(web)
    assert len(web.asked) == 4


class Endless(httpx.AsyncByteStream):
    def __init__(self):
        self.sent = 0
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.lowlevel.checkpoint()
        self.sent += 65_536
        return b"x" * 65_536

    async def aclose(self):
        self.closed = True


async def test_a_body_without_end_is_cut_at_the_cap():
    body = Endless()
    response = httpx.Response(200, headers={"content-type": "image/png"}, stream=body)
    assert "image exceeds 1 MB maximum" in await refused(Web(lambda _: response), max_mb=1)
    assert body.sent <= 2 << 20
    assert body.closed


async def test_a_length_over_the_cap_is_not_read_at_all():
    body = Endless()
    headers = {"content-type": "image/png", "content-length": str(10 << 30)}
    response = httpx.Response(200, headers=headers, stream=body)
    assert "image exceeds" in await refused(Web(lambda _: response))
    assert body.sent == 0


async def test_a_slow_drip_ends_with_the_time(autojump_clock):
    async def drip(request):
        await trio.sleep(3600)

    started = trio.current_time()
    assert "did not come in time" in await refused(Web(drip), timeout_seconds=7.0)
    assert trio.current_time() - started == pytest.approx(7, abs=0.1)


async def test_a_name_that_is_never_resolved_ends_with_the_time(autojump_clock):
    class Slow(Web):
        async def resolve(self, host, port):
            await trio.sleep(3600)

    assert "did not come in time" in await refused(Slow())


@pytest.mark.parametrize(
    "response",
    [
        picture(media_type="text/html"),
        picture(media_type="image/svg+xml"),
        picture(media_type=""),
        picture(gif_bytes()),
        picture(b"\x89PNG"),
        picture(png_bytes(50_000, 50_000)),
        httpx.Response(404, content=b"secret"),
        httpx.Response(200, content=PICTURE),
    ],
)
async def test_what_is_no_image_is_refused_without_its_content(response):
    assert "secret" not in await refused(Web(lambda _: response))


async def test_a_second_encoding_is_refused_before_it_is_unpacked():
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    response = httpx.Response(200, headers=headers, stream=Endless())
    assert "compressed" in await refused(Web(lambda _: response))


async def test_only_so_many_are_fetched_at_a_time(autojump_clock):
    running = most = 0

    async def slow(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return picture()

    async with fetching(Web(slow), timeout_seconds=60.0) as fetcher, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fetcher.fetch, URL)
    assert most == fetcher.limiter.total_tokens == 8


async def test_without_leave_there_is_no_client():
    async with open_fetcher(ImageSettings()) as fetcher:
        assert fetcher is None


async def test_with_leave_there_is_one_that_follows_nothing():
    async with open_fetcher(ImageSettings(fetch=True)) as fetcher:
        assert fetcher is not None
        assert not fetcher.client.follow_redirects
        assert not fetcher.client.trust_env
