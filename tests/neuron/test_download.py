"""One blob: resumed, proven, locked."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import pytest
import trio
import trio.testing
from fakes.hub import COMMIT, FakeHub, etag, running

from cortex.errors import CheckpointError, SourceUnavailable
from cortex.neuron.download import ATTEMPTS, Downloader, Patience
from cortex.neuron.hub_files import RemoteFile
from cortex.neuron.partial_file import ORPHAN_SECONDS, PartialFile, partial_of, remove_orphans

NAME = "model.safetensors"
DATA = bytes(range(256)) * 12_000  # 3 MB: more than one write
FILE = RemoteFile(NAME, len(DATA), etag(NAME, DATA), True)
HASTE = Patience(back_off=0, lock_poll=0.001)


@attrs.define(eq=False)
class Fetching:
    """A hub with DATA, and a cache that is to get it."""

    hub: FakeHub
    blob: Path
    client: httpx.AsyncClient
    done: int = 0

    def advance(self, count: int) -> None:
        self.done += count

    async def fetch(self, file: RemoteFile = FILE) -> None:
        self.done = 0
        url = f"{self.hub.hub}/org/model/resolve/{COMMIT}/{file.name}"
        with trio.fail_after(20):
            await Downloader(self.client, self.advance, HASTE).fetch(url, file, self.blob)

    def hold(self, data: bytes) -> None:
        """Leave what a killed process would have left."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.partial.write_bytes(data)

    @property
    def partial(self) -> Path:
        return partial_of(self.blob)

    @property
    def ranges(self) -> list[str | None]:
        return [asked.headers.get("range") for asked in self.hub.bodies(NAME)]

    def check_whole(self) -> None:
        assert self.blob.read_bytes() == DATA
        assert not self.partial.exists()
        assert self.done == len(DATA)


@asynccontextmanager
async def fetching(tmp_path: Path, read: float = 20.0) -> AsyncIterator[Fetching]:
    async with (
        running({NAME: DATA}) as hub,
        httpx.AsyncClient(timeout=read, follow_redirects=True) as client,
    ):
        yield Fetching(hub, tmp_path / "blobs" / FILE.etag, client)


async def test_a_blob_is_fetched_once(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        await it.fetch()
        it.check_whole()
        await it.fetch()
        it.check_whole()
        assert it.ranges == [None]


async def test_what_a_killed_process_left_is_gone_on_with(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hold(DATA[:1_000_001])
        await it.fetch()
        it.check_whole()
        assert it.ranges == ["bytes=1000001-"]


async def test_a_whole_partial_is_proven_without_a_transfer(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hold(DATA)
        await it.fetch()
        it.check_whole()
        assert it.ranges == []


@pytest.mark.parametrize(
    "left",
    [b"x" * 1000, DATA + b"more", b"x" * len(DATA)],
    ids=["another beginning", "too long", "whole but wrong"],
)
async def test_a_damaged_partial_costs_a_new_transfer_only(tmp_path: Path, left: bytes) -> None:
    async with fetching(tmp_path) as it:
        it.hold(left)
        await it.fetch()
        it.check_whole()
        assert it.ranges[-1] is None


async def test_every_cut_is_resumed_where_it_fell(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.cuts.extend([100_000, 1_500_000, 0, 7])
        await it.fetch()
        it.check_whole()
        assert it.ranges == [
            None,
            "bytes=100000-",
            "bytes=1600000-",
            "bytes=1600000-",
            "bytes=1600007-",
        ]


async def test_a_server_without_ranges_sends_all_again(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.ranges = False
        it.hub.cuts.append(50_000)
        await it.fetch()
        it.check_whole()
        assert it.ranges == [None, "bytes=50000-"]


async def test_a_refused_range_is_followed_by_a_request_for_all(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hold(DATA[:2000])
        it.hub.instead[NAME] = DATA[:1500]  # shorter than what is held: 416
        with pytest.raises(SourceUnavailable, match="cannot be fetched"):
            await it.fetch()
        assert it.ranges == ["bytes=2000-", None, "bytes=1500-", None, "bytes=1500-"]


async def test_what_ends_early_for_good_is_given_up_and_kept(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.cuts.extend([5000] + [0] * ATTEMPTS)
        with pytest.raises(SourceUnavailable, match="cannot be fetched"):
            await it.fetch()
        assert it.partial.read_bytes() == DATA[:5000]
        assert it.done == 5000
        await it.fetch()
        it.check_whole()


async def test_a_wrong_part_is_not_stored(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "range" not in request.headers:
            return httpx.Response(200, stream=httpx.ByteStream(DATA))
        whole = {"content-range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
        return httpx.Response(206, stream=httpx.ByteStream(DATA), headers=whole)

    async with fetching(tmp_path) as it:
        it.client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        it.hold(DATA[:3000])
        await it.fetch()
        it.check_whole()
        await it.client.aclose()


async def test_wrong_bytes_never_get_the_blobs_name(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.instead[NAME] = b"x" + DATA[1:]
        with pytest.raises(SourceUnavailable, match="arrived damaged"):
            await it.fetch()
        assert not it.blob.exists()
        assert it.partial.read_bytes() == b""
        assert it.done == 0


async def test_more_than_was_announced_is_refused(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.instead[NAME] = DATA + b"x"
        with pytest.raises(CheckpointError, match="longer than announced"):
            await it.fetch()
        assert not it.blob.exists()
        assert it.partial.read_bytes() == b""
        assert it.done == 0


async def test_a_blob_of_another_length_is_replaced(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.blob.parent.mkdir()
        it.blob.write_bytes(DATA[:10])
        await it.fetch()
        it.check_whole()


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        await it.fetch(RemoteFile("empty.json", 0, etag("empty.json", b""), False))
        assert it.blob.read_bytes() == b""
        assert it.hub.asked == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_refusal_is_final(tmp_path: Path, status: int) -> None:
    async with fetching(tmp_path) as it:
        it.hub.status[NAME] = status
        with pytest.raises(CheckpointError, match=f"{status}"):
            await it.fetch()
        assert len(it.ranges) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_fault_of_the_server_is_tried_again(tmp_path: Path, status: int) -> None:
    async with fetching(tmp_path) as it:
        it.hub.status[NAME] = status
        with pytest.raises(SourceUnavailable, match=f"{status}"):
            await it.fetch()
        assert len(it.ranges) == ATTEMPTS
        it.hub.status.clear()
        await it.fetch()
        it.check_whole()


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        with trio.socket.socket() as unheard:
            await unheard.bind(("127.0.0.1", 0))  # and never listens
            it.hub.cdn = f"http://127.0.0.1:{unheard.getsockname()[1]}"
            with pytest.raises(SourceUnavailable, match="cannot be fetched"):
                await it.fetch()


async def test_a_stalled_server_is_left_and_what_came_is_kept(tmp_path: Path) -> None:
    async with fetching(tmp_path, read=0.05) as it:
        it.hub.stall_after = 70_000

        async def stop_sending() -> None:
            await it.hub.stalled.wait()
            it.hub.stall_after = 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_sending)
            with pytest.raises(SourceUnavailable, match="ReadTimeout"):
                await it.fetch()
        assert it.ranges[1] == "bytes=70000-"
        held = it.partial.stat().st_size
        assert it.partial.read_bytes() == DATA[:held]
        assert it.done == held > 0


async def test_a_cancelled_fetch_leaves_a_beginning_and_no_lock(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.hub.stall_after = 2_500_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fetch)
            await it.hub.stalled.wait()
            with trio.fail_after(20):
                while it.done == 0:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        held = it.partial.stat().st_size
        assert it.partial.read_bytes() == DATA[:held]
        assert held > 0
        with it.partial.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        it.hub.stall_after = None
        await it.fetch()
        it.check_whole()
        assert it.ranges[-1] == f"bytes={held}-"


def test_proving_can_be_ended_and_keeps_what_is_there(tmp_path: Path) -> None:
    def cancelled() -> None:
        raise InterruptedError

    blob = tmp_path / FILE.etag
    partial_of(blob).write_bytes(DATA)
    partial = PartialFile.lock(blob, FILE)
    assert partial is not None
    with partial, pytest.raises(InterruptedError):
        partial.matches(cancelled)
    assert partial_of(blob).read_bytes() == DATA


async def test_two_fetches_of_one_blob_transfer_it_once(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        other = Fetching(it.hub, it.blob, it.client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fetch)
            nursery.start_soon(other.fetch)
        it.check_whole()
        other.check_whole()
        assert it.ranges == [None]


HOLDER = """
import fcntl, os, sys
partial, blob, data = sys.argv[1:]
with open(partial, "wb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
    if data:
        file.write(open(data, "rb").read())
        file.flush()
        os.replace(partial, blob)
"""


@pytest.mark.parametrize("publishes", [True, False], ids=["it finishes", "it is killed"])
async def test_another_process_is_waited_for(tmp_path: Path, publishes: bool) -> None:
    async with fetching(tmp_path) as it:
        it.hold(b"")
        source = tmp_path / "source"
        source.write_bytes(DATA)
        arguments = [str(it.partial), str(it.blob), str(source) if publishes else ""]
        holder = await trio.lowlevel.open_process(
            [sys.executable, "-c", HOLDER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        async with holder.stdin, holder.stdout:
            try:
                assert await holder.stdout.receive_some(1) == b"l"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(it.fetch)
                    await trio.testing.wait_all_tasks_blocked()
                    assert it.hub.asked == []
                    if publishes:
                        await holder.stdin.send_all(b"\n")
                    else:
                        holder.kill()
            finally:
                with trio.CancelScope(shield=True):
                    holder.kill()
                    await holder.wait()
        it.check_whole()
        assert len(it.ranges) == (0 if publishes else 1)


async def test_a_full_disk_is_the_systems_error(tmp_path: Path) -> None:
    async with fetching(tmp_path) as it:
        it.partial.parent.mkdir()
        it.partial.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            await it.fetch()
        assert not it.blob.exists()
        assert it.done == 0


def test_orphans_go_after_a_week_unless_somebody_has_them(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in ("old", "taken"):
        partial_of(blobs / name).write_bytes(b"x")
    partial_of(blobs / "link").symlink_to("nowhere")
    (blobs / "whole").write_bytes(b"x")
    for commit in ("now", "then"):
        (tmp_path / "cortex-headers" / commit).mkdir(parents=True)
    written = partial_of(blobs / "old").stat().st_mtime
    assert remove_orphans(tmp_path, "now", written + ORPHAN_SECONDS - 60) == 0
    taken = PartialFile.lock(blobs / "taken", FILE)
    assert taken is not None
    with taken:
        assert remove_orphans(tmp_path, "now", written + ORPHAN_SECONDS + 60) == 3
    left = {path.name for path in blobs.iterdir()}
    assert left == {"whole", partial_of(blobs / "taken").name}
    assert [path.name for path in (tmp_path / "cortex-headers").iterdir()] == ["now"]
