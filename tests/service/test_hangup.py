from __future__ import annotations

import select
import socket
import struct

import pytest
import trio
import trio.testing

from cortex.service.hangup import EpollWatch, PollWatch, hangup_watch

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


@pytest.fixture(params=[EpollWatch, PollWatch])
async def watch(request, nursery):
    if request.param is EpollWatch and not hasattr(select, "epoll"):
        pytest.skip("no epoll on this system")
    watch = request.param()
    nursery.start_soon(watch.run)
    await trio.testing.wait_all_tasks_blocked()
    yield watch
    nursery.cancel_scope.cancel()


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        server.setblocking(False)
        with client, server:
            yield client, server


def leave(client: socket.socket, how: str) -> None:
    if how == "half":
        client.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_a_peer_that_leaves_is_told_once(watch, pair, how):
    client, server = pair
    gone, told = trio.Event(), []
    watch.watch(server, lambda: (told.append(how), gone.set()))
    leave(client, how)
    with trio.fail_after(2):
        await gone.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert told == [how]
    watch.forget(server)  # allowed, though nothing is left to forget


async def test_data_is_no_end_and_does_not_hide_one(pair, nursery):
    watch = hangup_watch()
    if not isinstance(watch, EpollWatch):
        pytest.skip("no epoll on this system")
    nursery.start_soon(watch.run)
    client, server = pair
    gone = trio.Event()
    watch.watch(server, gone.set)
    client.sendall(b"pipelined")
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not gone.is_set()
    client.close()
    with trio.fail_after(2):
        await gone.wait()
    nursery.cancel_scope.cancel()


async def test_after_its_end_nothing_is_watched_and_nothing_fails(pair):
    watch = hangup_watch()
    _, server = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.testing.wait_all_tasks_blocked()
        watch.watch(server, lambda: None)
        nursery.cancel_scope.cancel()
    watch.forget(server)
    watch.watch(server, lambda: None)
    watch.forget(server)


async def test_one_that_is_forgotten_is_not_told_and_its_number_may_be_given_anew(watch, pair):
    client, server = pair
    told = []
    watch.watch(server, lambda: told.append("first"))
    watch.forget(server)
    watch.watch(server, lambda: told.append("second"))
    watch.forget(server)
    client.close()
    await trio.sleep(0.3)
    assert told == []
