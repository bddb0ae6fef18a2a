"""The fast lane over memory streams, on virtual time: framing, order, bounds, ends."""

from __future__ import annotations

import re

import attrs
import pytest
import trio
import trio.testing

from cortex.errors import CortexError, Forbidden, Overloaded
from cortex.service.edge import BODY_SECONDS, Edge
from cortex.service.hangup import PollWatch
from cortex.service.http import Answer, HttpRequest, Pace, Route, StreamAnswer, Writer
from cortex.service.lane import ANSWER_SECONDS, HEAD_SECONDS, IDLE_SECONDS, Lane
from cortex.service.lane_body import CONTINUE
from cortex.service.lane_head import MAX_HEAD_BYTES, HotPaths
from cortex.service.link import LINGER_SECONDS, StreamLink
from cortex.service.pacer import Pacer
from cortex.wire import json

LIMIT = 2000
PACE = Pace(commit_after=5, keep_alive=2, stall=10)
PATHS = ("/echo", "/fail", "/stream", "/late", "/wait", "/guarded")


def render(error: CortexError, request_id: str) -> Answer:
    body = {"code": error.error_code, "message": error.message}
    return Answer(json.dumps(body), error.status)


@attrs.define(eq=False)
class Service:
    go: trio.Event = attrs.field(factory=trio.Event)
    seen: list[HttpRequest] = attrs.field(factory=list)
    cancelled: int = 0

    async def echo(self, request: HttpRequest) -> Answer:
        self.seen.append(request)
        return Answer(request.body, headers={"x-query": request.query.get("q", "")})

    async def fail(self, request: HttpRequest) -> Answer:
        raise Overloaded("full") if request.body == b"full" else ZeroDivisionError("secret")

    async def stream(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            for word in request.body.split():
                await writer.write(word + b"\n\n")

        return StreamAnswer(produce, PACE)

    async def late(self, request: HttpRequest) -> StreamAnswer:
        """Sleeps and writes by turns; a word that is no number is written, or raised."""

        async def produce(writer: Writer) -> None:
            try:
                for word in request.body.decode().split():
                    if word == "full":
                        raise Overloaded("full")
                    if word == "bug":
                        raise ZeroDivisionError("secret")
                    if word.isdigit():
                        await trio.sleep(int(word))
                    else:
                        await writer.write(word.encode())
            except trio.Cancelled:
                self.cancelled += 1
                raise

        return StreamAnswer(produce, PACE, filler=lambda: b":")

    async def wait(self, request: HttpRequest) -> Answer:
        self.seen.append(request)
        await self.go.wait()
        return Answer(b"went")


def guard(request: HttpRequest, route: Route) -> None:
    if route.path == "/guarded":
        raise Forbidden("not you")


class Client:
    def __init__(self, stream) -> None:
        self.stream = stream
        self.received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def rest(self) -> bytes:
        """Everything to the end of the connection."""
        while await self._some():
            pass
        return self.received

    async def until(self, text: bytes) -> bytes:
        while text not in self.received:
            assert await self._some(), self.received
        return self.received

    async def _some(self) -> bytes:
        data = await self.stream.receive_some(65536)
        self.received += data
        return data


@attrs.define(eq=False)
class Bench:
    lane: Lane
    service: Service
    nursery: trio.Nursery
    cold: list[bytes] = attrs.field(factory=list)
    served: int = 0  # connections that have come to their end

    def connect(self) -> Client:
        theirs, ours = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, ours)
        return Client(theirs)

    async def _serve(self, stream) -> None:
        async with trio.open_nursery() as nursery:
            await self.lane.handle(StreamLink(stream, nursery, "1.2.3.4"))
        self.served += 1

    async def ask(self, *pieces: bytes) -> bytes:
        """All that comes back for *pieces*, each sent for itself."""
        client = self.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.rest)
            for piece in pieces:
                await client.send(piece)
                await trio.testing.wait_all_tasks_blocked()
        return client.received


@pytest.fixture
async def bench(nursery):
    service = Service()
    routes = [Route("POST", path, getattr(service, path[1:], service.echo)) for path in PATHS]
    edge = Edge(routes, render_error=render, guard=guard, max_body_bytes=LIMIT)
    pacer = Pacer()
    nursery.start_soon(pacer.run)

    async def cold(stream) -> None:
        made.cold.append(await stream.receive_some())
        await stream.send_all(b"COLD")

    lane = Lane(edge, HotPaths(PATHS), cold, pacer, PollWatch())
    made = Bench(lane, service, nursery)
    nursery.start_soon(lane.run)
    return made


def post(path: str, body: bytes = b"", *lines: bytes, length: bool = True) -> bytes:
    head = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", b"x-request-id: r", *lines]
    if length:
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CLOSE = b"connection: close"
CHUNKED = b"transfer-encoding: chunked"


def statuses(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def undated(data: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*\r\n", b"", data)


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


# Whole exchanges


async def test_an_answer_with_its_head(autojump_clock, bench):
    answer = await bench.ask(post("/echo?q=1", b"hello", CLOSE))
    assert undated(answer) == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: application/json\r\n"
        b"x-query: 1\r\nx-request-id: r\r\nrequest-id: r\r\nconnection: close\r\n\r\nhello"
    )
    (request,) = bench.service.seen
    assert (request.method, request.path, request.peer) == ("POST", "/echo", "1.2.3.4")


async def test_a_stream_in_chunks(autojump_clock, bench):
    answer = await bench.ask(post("/stream", b"a bc", CLOSE))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    for line in (b"transfer-encoding: chunked", b"cache-control: no-cache", CLOSE):
        assert b"\r\n%b\r\n" % line in answer
    assert body_of(answer) == b"3\r\na\n\n\r\n4\r\nbc\n\n\r\n0\r\n\r\n"


async def test_an_old_client_gets_its_stream_until_the_close(autojump_clock, bench):
    answer = await bench.ask(b"POST /stream HTTP/1.0\r\ncontent-length: 4\r\n\r\na bc")
    assert b"transfer-encoding" not in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert body_of(answer) == b"a\n\nbc\n\n"


EXCHANGES = {
    "answer": post("/echo", b"hello"),
    "chunked": post("/echo", b"5\r\nhello\r\n0\r\n\r\n", CHUNKED, length=False),
    "error": post("/fail", b"full"),
    "stream": post("/stream", b"a b c"),
    "late-error": post("/late", b"full"),
}


@pytest.mark.parametrize("first", EXCHANGES.values(), ids=EXCHANGES.keys())
async def test_where_the_bytes_are_cut_makes_no_difference(autojump_clock, bench, first):
    data = first + post("/echo", b"x", CLOSE)
    whole = undated(await bench.ask(data))
    assert len(statuses(whole)) == 2
    for at in range(1, len(data)):
        assert undated(await bench.ask(data[:at], data[at:])) == whole
    assert undated(await bench.ask(*[data[n : n + 1] for n in range(len(data))])) == whole


async def test_pipelined_requests_are_answered_in_order(autojump_clock, bench):
    words = [b"%d" % n for n in range(100)]
    data = b"".join(post("/stream" if n % 3 else "/echo", word) for n, word in enumerate(words))
    answer = await bench.ask(data + post("/echo", b"end", CLOSE))
    assert statuses(answer) == [200] * 101
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]]
    for word, body in zip(words, bodies, strict=False):
        assert body in (word, b"%x\r\n%b\n\n\r\n0\r\n\r\n" % (len(word) + 2, word))


# Errors


async def test_errors_are_answers_and_the_connection_goes_on(autojump_clock, bench):
    data = post("/fail", b"full") + post("/fail") + post("/late", b"full") + post("/late", b"bug")
    answer = await bench.ask(data + post("/echo", b"x", CLOSE))
    assert statuses(answer) == [429, 500, 429, 500, 200]
    assert b"secret" not in answer


async def test_a_stream_that_fails_after_its_status_is_cut_short(autojump_clock, bench):
    answer = await bench.ask(post("/late", b"word bug") + post("/echo", b"x"))
    assert statuses(answer) == [200]
    assert answer.endswith(b"4\r\nword\r\n")


async def test_what_is_refused_before_its_body_is_read_ends_the_connection(autojump_clock, bench):
    answer = await bench.ask(post("/guarded", b"body") + post("/echo", b"x"))
    assert statuses(answer) == [403]
    assert b"\r\nconnection: close\r\n" in answer
    assert statuses(await bench.ask(post("/guarded") + post("/echo", b"x", CLOSE))) == [403, 200]


@pytest.mark.parametrize(
    "lines",
    [(b"content-length: 5", CHUNKED), (b"content-length: +5",), (b"x-a: b\nx-c: d",)],
    ids=["both", "plus", "bare-lf"],
)
async def test_a_bad_head_is_400_and_nothing_after_it_is_read(autojump_clock, bench, lines):
    data = post("/echo", b"5\r\nhello\r\n0\r\n\r\n", *lines, length=False)
    answer = await bench.ask(data + post("/echo", b"x"))
    assert statuses(answer) == [400]
    assert b"bad_request_head" in answer
    assert bench.service.seen == []


async def test_a_bad_chunk_is_400_and_nothing_after_it_is_read(autojump_clock, bench):
    data = post("/echo", b"zz\r\nhello", CHUNKED, length=False)
    answer = await bench.ask(data + post("/echo", b"x"))
    assert statuses(answer) == [400]
    assert bench.service.seen == []


async def test_a_head_over_its_bound_is_431(autojump_clock, bench):
    answer = await bench.ask(post("/echo", b"", b"x-a: " + b"y" * MAX_HEAD_BYTES))
    assert statuses(answer) == [431]
    answer = await bench.ask(post("/echo", b"", *[b"x-%d: y" % n for n in range(300)]))
    assert statuses(answer) == [431]


async def test_a_body_over_the_cap_is_413_early_or_at_the_cap(autojump_clock, bench):
    early = post("/echo", b"", b"content-length: %d" % (LIMIT + 1), length=False)
    assert statuses(await bench.ask(early)) == [413]
    at_cap = post("/echo", b"%x\r\n" % LIMIT + b"x" * LIMIT + b"\r\n1\r\n", CHUNKED, length=False)
    assert statuses(await bench.ask(at_cap)) == [413]
    assert statuses(await bench.ask(post("/echo", b"x" * LIMIT, CLOSE))) == [200]


# Expectations


async def test_a_client_that_waits_to_be_told_to_go_on_is_told_once(autojump_clock, bench):
    client = bench.connect()
    data = post("/echo", b"hello", CLOSE, b"expect: 100-continue")
    await client.send(data[:-5])
    await client.until(CONTINUE)
    await client.send(data[-5:])
    assert statuses(await client.rest()) == [100, 200]


async def test_nobody_is_told_to_go_on_who_has_or_must_not(autojump_clock, bench):
    expecting = b"expect: 100-continue"
    assert statuses(await bench.ask(post("/echo", b"hello", CLOSE, expecting))) == [200]
    assert statuses(await bench.ask(post("/guarded", b"hello", expecting))) == [403]
    big = post("/echo", b"", expecting, b"content-length: 9999", length=False)
    assert statuses(await bench.ask(big)) == [413]
    assert statuses(await bench.ask(post("/echo", b"hello", b"expect: miracles"))) == [417]


# The other lane


COLD = b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "data", [COLD, b"POST /other HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"\x16"]
)
async def test_what_is_not_hot_is_handed_over_with_its_bytes(autojump_clock, bench, data):
    assert await bench.ask(data) == b"COLD"
    assert bench.cold == [data]


async def test_a_connection_that_goes_elsewhere_is_handed_over_then(autojump_clock, bench):
    answer = await bench.ask(post("/echo", b"x") + post("/stream", b"a") + COLD)
    assert statuses(answer) == [200, 200]
    assert answer.endswith(b"0\r\n\r\nCOLD")
    assert bench.cold == [COLD]


# Time


async def test_an_idle_connection_is_closed_after_a_while(autojump_clock, bench):
    client = bench.connect()
    start = trio.current_time()
    assert await client.rest() == b""
    assert trio.current_time() - start == IDLE_SECONDS
    client = bench.connect()
    await client.send(post("/echo", b"x"))
    start = trio.current_time()
    assert statuses(await client.rest()) == [200]
    assert trio.current_time() - start == IDLE_SECONDS


@pytest.mark.parametrize("end", [4, 30])
async def test_a_head_that_drips_is_408(autojump_clock, bench, end):
    data = post("/echo", b"x")
    client, start = bench.connect(), trio.current_time()

    async def drip() -> None:
        for n in range(end):
            await client.send(data[n : n + 1])
            await trio.sleep(HEAD_SECONDS / end / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        await client.until(b"\r\n\r\n")
        assert trio.current_time() - start == HEAD_SECONDS
        assert statuses(client.received) == [408]
        await client.rest()
        assert trio.current_time() - start <= HEAD_SECONDS + LINGER_SECONDS
        nursery.cancel_scope.cancel()


async def test_a_body_that_drips_is_400(autojump_clock, bench):
    client, start = bench.connect(), trio.current_time()
    await client.send(post("/echo", b"hello")[:-1])
    await client.until(b"body_timeout")
    assert trio.current_time() - start == BODY_SECONDS
    assert statuses(await client.rest()) == [400]


async def test_silence_is_filled_and_the_status_is_not_kept_back(autojump_clock, bench):
    start = trio.current_time()
    answer = await bench.ask(post("/late", b"8 word 3 end", CLOSE))
    assert trio.current_time() - start == 11
    assert body_of(answer) == b"1\r\n:\r\n" * 2 + b"4\r\nword\r\n1\r\n:\r\n3\r\nend\r\n0\r\n\r\n"


async def test_a_failure_after_the_commit_in_silence_is_no_second_status(autojump_clock, bench):
    answer = await bench.ask(post("/late", b"6 full"))
    assert statuses(answer) == [200]
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_last_word_is_heard_by_a_client_that_still_talks(autojump_clock, bench):
    client = bench.connect()
    await client.send(post("/guarded", b"x" * LIMIT)[:-1])
    await client.until(b"not you")
    await client.send(b"x")  # is read, and of no consequence
    await client.rest()
    await trio.sleep(LINGER_SECONDS - 0.5)
    assert bench.served == 0
    await trio.sleep(1)
    assert bench.served == 1


# Clients that do not read


async def test_a_client_that_takes_nothing_is_given_up(autojump_clock, bench):
    theirs, ours = trio.testing.lockstep_stream_pair()
    for path, body, bound in (
        ("/stream", b"a b", PACE.stall),
        ("/echo", b"x", ANSWER_SECONDS),
    ):
        theirs, ours = trio.testing.lockstep_stream_pair()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send_all, post(path, body))
            await bench.lane.handle(StreamLink(ours, nursery))
        assert trio.current_time() - start == bound


# The end of the server


async def test_a_drain_ends_idle_connections_at_once_and_others_after_their_answer(
    autojump_clock, bench
):
    idle, used, busy, streaming = (bench.connect() for _ in range(4))
    await used.send(post("/echo", b"x"))
    await used.until(b"x-query")
    await busy.send(post("/wait"))
    await streaming.send(post("/late", b"word 5 end"))
    await streaming.until(b"word")
    await trio.testing.wait_all_tasks_blocked()
    start = trio.current_time()
    bench.lane.drain()
    await idle.rest()
    await used.rest()
    assert trio.current_time() == start
    bench.service.go.set()
    answer = await busy.rest()
    assert answer.endswith(b"went")
    assert b"\r\nconnection: close\r\n" in answer
    assert trio.current_time() == start
    assert (await streaming.rest()).endswith(b"3\r\nend\r\n0\r\n\r\n")
    assert trio.current_time() - start == 5


async def test_a_hundred_streams_do_not_mix(autojump_clock, bench):
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        words = b" ".join(b"w%d-%d" % (number, n) + b" 1" for n in range(5))
        answers[number] = await bench.ask(post("/late", words, CLOSE))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    for number, answer in answers.items():
        assert re.findall(rb"w\d+-\d+", answer) == [b"w%d-%d" % (number, n) for n in range(5)]
