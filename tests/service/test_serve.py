"""Serving and its end: what drains, what is cut, and that the end always comes."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing

from cortex.errors import CortexError
from cortex.service.http import Answer, HttpRequest, Route, StreamAnswer, Writer
from cortex.service.lane import IDLE_SECONDS
from cortex.service.quart_app import make_app
from cortex.service.serve import listen, serve, split_address, url_of


def render(error: CortexError, request_id: str) -> Answer:
    return Answer(error.message.encode(), error.status)


class Service:
    """Streams without end, or until it is told."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.begun = trio.Event()

    async def flood(self, request: HttpRequest) -> StreamAnswer:
        async def produce(writer: Writer) -> None:
            while True:
                await writer.write(b"x" * 65536)
                self.begun.set()

        return StreamAnswer(produce)

    async def held(self, request: HttpRequest) -> Answer:
        self.begun.set()
        await self.go.wait()
        return Answer(b"late")


class Running:
    """A server whose `stopped` is set once `serve` has returned."""

    def __init__(self, service: Service, drain_seconds: float) -> None:
        routes = [
            Route("GET", "/flood", service.flood),
            Route("GET", "/held", service.held),
        ]
        self._app = make_app("t", routes, render_error=render)
        self._drain = drain_seconds
        self.stop, self.stopped = trio.Event(), trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        listener = listen("127.0.0.1:0")
        await serve(
            self._app,
            listener,
            stop=self.stop.wait,
            drain_seconds=self._drain,
            task_status=task_status,
        )
        self.stopped.set()


async def connect(url: str, path: str, receive_buffer: int | None = None) -> trio.SocketStream:
    raw = trio.socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    host, port = url.removeprefix("http://").split(":")
    try:
        await raw.connect((host, int(port)))
    except OSError:
        raw.close()
        raise
    stream = trio.SocketStream(raw)
    await stream.send_all(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
    return stream


async def test_a_client_that_takes_no_data_does_not_hold_up_the_end(nursery):
    service = Service()
    running = Running(service, drain_seconds=0.3)
    url = await nursery.start(running.run)
    async with await connect(url, "/flood", receive_buffer=4096):
        await service.begun.wait()
        running.stop.set()
        with trio.fail_after(5):
            await running.stopped.wait()


async def test_a_response_under_way_is_finished_and_new_connections_are_refused(nursery):
    service = Service()
    running = Running(service, drain_seconds=10)
    url = await nursery.start(running.run)
    async with await connect(url, "/held") as stream:
        await service.begun.wait()
        running.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError):
            await connect(url, "/held")
        service.go.set()
        answer = b""
        with trio.fail_after(5):
            while data := await stream.receive_some():
                answer += data
        assert answer.endswith(b"late")
        with trio.fail_after(5):
            await running.stopped.wait()


async def test_an_idle_connection_ends_with_the_server_at_once(nursery):
    service = Service()
    service.go.set()
    running = Running(service, drain_seconds=30)
    url = await nursery.start(running.run)
    async with await connect(url, "/held") as stream:
        await stream.receive_some()
        running.stop.set()
        with trio.fail_after(5):
            await running.stopped.wait()


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps when nothing is to be done, but only once sockets were quiet for a moment."""
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /held HTTP/1.1\r\nhost:"])
async def test_a_connection_that_says_nothing_whole_is_closed_in_time(nursery, patient_clock, sent):
    running = Running(Service(), drain_seconds=1)
    url = await nursery.start(running.run)
    host, port = url.removeprefix("http://").split(":")
    start = trio.current_time()
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(sent)
        while await stream.receive_some():
            pass
    assert trio.current_time() - start <= IDLE_SECONDS
    running.stop.set()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("0.0.0.0", 80)),
    ],
)
def test_an_address_is_host_and_port(address, expected):
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["80", "host", "host:x", "host:70000", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_an_address_for_all_is_reached_through_loopback():
    with listen("0.0.0.0:0") as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


class Exhausted(socket.socket):
    """A listener of a process that has no descriptor left for its next connections."""

    failures = 0

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "none left")
        return super().accept()


async def test_out_of_descriptors_is_told_once_and_got_over(autojump_clock, caplog):
    caplog.set_level("INFO", "cortex")
    listener = Exhausted(fileno=listen("127.0.0.1:0").detach())
    listener.failures = 50
    app = make_app("test", [Route("GET", "/", answered)], render_error=render)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        port = listener.getsockname()[1]

        async def start(*, task_status):
            await serve(app, listener, stop=stop.wait, drain_seconds=1, task_status=task_status)

        await nursery.start(start)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        stop.set()
    assert caplog.text.count("no connection can be accepted") == 1
    assert caplog.text.count("accepted again") == 1


async def answered(request: HttpRequest) -> Answer:
    return Answer(b"well")
