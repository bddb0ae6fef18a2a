"""Repositories of a hub, through the cache that its own tools use."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import huggingface_hub
import pytest
import trio
import trio.testing
from fakes.checkpoints import write_checkpoint
from fakes.hub import FakeHub, etag, running

from cortex.config.neuron import NeuronConfig
from cortex.engine.load.checkpoint import estimate
from cortex.errors import BadRequest, CheckpointError, DiskFull, SourceUnavailable
from cortex.neuron.download import Patience
from cortex.neuron.hub import HuggingFaceHub, cache_directory
from cortex.neuron.hub_files import INDEX, SINGLE, Files
from cortex.neuron.partial_file import partial_of

HASTE = Patience(listing=10, read=10, back_off=0, lock_poll=0.001)
OTHER_COMMIT = "beef" + "0" * 36
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARDED = {
    "config.json": b"{}",
    INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: b"first shard" * 100,
    SHARDS[1]: b"second shard" * 100,
    "README.md": b"prose",
}
SINGLE_FILES = {"config.json": b"{}", "tokenizer.json": b"[]", SINGLE: b"weights" * 1000}


@attrs.define(eq=False)
class Neuron:
    """A hub, and a neuron's way to it."""

    fake: FakeHub
    cache: Path
    token: str | None = None
    offline: bool = False
    heard: list[tuple[str, int, int]] = attrs.field(factory=list)

    @property
    def folder(self) -> Path:
        return self.cache / "models--org--model"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.fake.commit

    async def fetch(self, files: Files = "all") -> Path:
        hub = HuggingFaceHub(self.cache, self.fake.hub, self.token, self.offline, HASTE)
        self.heard.clear()

        def hear(stage: str, done: int, total: int) -> None:
            self.heard.append((stage, done, total))

        with trio.fail_after(20):
            return await hub.fetch("org/model", progress=hear, files=files)


@pytest.fixture(autouse=True)
def _close_the_librarys_connections() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


@asynccontextmanager
async def neuron(files: dict[str, bytes], cache: Path) -> AsyncIterator[Neuron]:
    async with running(files) as fake:
        yield Neuron(fake, cache)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_what_was_fetched_is_found_by_the_hubs_own_library(tmp_path: Path) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        directory = await it.fetch()
        wanted = {name: data for name, data in SHARDED.items() if name != "README.md"}
        assert contents(directory) == wanted
        find = partial(huggingface_hub.snapshot_download, "org/model", cache_dir=tmp_path)
        found = await trio.to_thread.run_sync(lambda: find(local_files_only=True))
        assert Path(found) == directory
        cached = huggingface_hub.scan_cache_dir(tmp_path)
        assert not cached.warnings
        assert {file.file_name for repo in cached.repos for revision in repo.revisions
                for file in revision.files} == set(wanted)  # fmt: skip


async def test_what_the_hubs_own_library_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        fetch = partial(
            huggingface_hub.hf_hub_download, "org/model", cache_dir=tmp_path, endpoint=it.fake.hub
        )
        for name in SINGLE_FILES:
            await trio.to_thread.run_sync(partial(fetch, name))
        it.fake.asked.clear()
        assert contents(await it.fetch()) == SINGLE_FILES
        assert [asked.file for asked in it.fake.asked] == [None]  # the listing
        it.offline = True
        assert contents(await it.fetch()) == SINGLE_FILES


async def test_files_in_folders_come_along(tmp_path: Path) -> None:
    pooling = {"modules.json": b"[]", "1_Pooling/config.json": b'{"a": 1}'}
    async with neuron({**SHARDED, **pooling}, tmp_path) as it:
        directory = await it.fetch()
        assert {name: (directory / name).read_bytes() for name in pooling} == pooling
        it.fake.asked.clear()
        await it.fetch()
        assert not any(it.fake.bodies(name) for name in pooling)


async def test_progress_ends_exactly_at_the_total(tmp_path: Path) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        it.fake.cuts.extend([100, 100, 100, 100])
        await it.fetch()
        total = len(SHARDED[SHARDS[0]]) + len(SHARDED[SHARDS[1]])
        assert it.heard[0] == ("resolve", 0, 0)
        assert it.heard[-1] == ("download", total, total)
        done = [count for stage, count, _ in it.heard if stage == "download"]
        assert done == sorted(done)
        await it.fetch()
        assert it.heard[-1] == ("download", total, total)


async def test_a_token_stays_with_the_hub(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        it.token = "hf_secret"
        await it.fetch()
        for asked in it.fake.asked:
            expected = "Bearer hf_secret" if asked.host == "hub" else None
            assert asked.headers.get("authorization") == expected
        assert {asked.host for asked in it.fake.asked} == {"hub", "cdn"}
        assert "hf_secret" not in repr(HuggingFaceHub(tmp_path, token="hf_secret"))


async def test_a_new_commit_transfers_only_what_changed(tmp_path: Path) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        await it.fetch()
        it.fake.commit = OTHER_COMMIT
        it.fake.files[SHARDS[1]] = b"changed"
        it.fake.asked.clear()
        assert (await it.fetch()).name == OTHER_COMMIT
        assert [a.file for a in it.fake.asked if a.host == "cdn"] == [SHARDS[1]]
        assert (it.folder / "refs" / "main").read_text() == OTHER_COMMIT


async def test_an_interrupted_fetch_leaves_the_old_snapshot_for_when_offline(
    tmp_path: Path,
) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        old = await it.fetch()
        it.fake.commit = OTHER_COMMIT
        it.fake.files[SHARDS[1]] = b"changed"
        it.fake.stall_after = 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fetch)
            await it.fake.stalled.wait()
            nursery.cancel_scope.cancel()
        it.fake.listing_status = 503
        assert await it.fetch() == old
        it.fake.listing_status, it.fake.stall_after = 200, None
        assert contents(await it.fetch())[SHARDS[1]] == b"changed"


async def test_the_next_fetch_goes_on_with_a_partial_file(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        left = partial_of(it.folder / "blobs" / etag(SINGLE, SINGLE_FILES[SINGLE]))
        left.parent.mkdir(parents=True)
        left.write_bytes(SINGLE_FILES[SINGLE][:2000])
        await it.fetch()
        assert [a.headers.get("range") for a in it.fake.bodies(SINGLE)] == ["bytes=2000-"]
        assert {path.name for path in left.parent.iterdir()} == {
            etag(name, data) for name, data in SINGLE_FILES.items()
        }


async def test_fetches_of_one_repository_side_by_side_transfer_it_once(tmp_path: Path) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(Neuron(it.fake, tmp_path).fetch)
        assert [len(it.fake.bodies(name)) for name in SHARDS] == [1, 1]
        assert len(contents(it.snapshot)) == 4
        assert not list((it.folder / "blobs").glob("*partial*"))


@pytest.mark.parametrize(
    "lost", [SHARDS[1], INDEX, "config.json"], ids=["shard", "index", "config"]
)
async def test_a_snapshot_in_part_is_not_served_offline(tmp_path: Path, lost: str) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        await it.fetch()
        it.offline = True
        (it.snapshot / lost).resolve().unlink()  # its link stays, and leads nowhere
        with pytest.raises(SourceUnavailable, match="only in part"):
            await it.fetch()
        it.offline = False
        assert (await it.fetch() / lost).read_bytes() == SHARDED[lost]


async def test_offline_without_a_snapshot_is_unavailable(tmp_path: Path) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        it.offline = True
        with pytest.raises(SourceUnavailable, match="not in the cache, and the neuron is offline"):
            await it.fetch()
        assert it.fake.asked == []


@pytest.mark.parametrize("ref", ["../../etc", "", "0" * 39, "\udcff"])
async def test_a_damaged_ref_leads_nowhere(tmp_path: Path, ref: str) -> None:
    async with neuron(SHARDED, tmp_path) as it:
        await it.fetch()
        (it.folder / "refs" / "main").write_bytes(ref.encode("utf-8", "surrogateescape"))
        it.offline = True
        with pytest.raises(SourceUnavailable, match="not in the cache"):
            await it.fetch()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, CheckpointError),
        (403, CheckpointError),
        (404, CheckpointError),
        (429, SourceUnavailable),
        (500, SourceUnavailable),
        (503, SourceUnavailable),
    ],
)
async def test_a_refused_listing_says_whether_to_come_back(
    tmp_path: Path, status: int, error: type[Exception]
) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        it.fake.listing_status = status
        with pytest.raises(error, match="org/model"):
            await it.fetch()


async def test_nobody_listening_means_the_cached_snapshot(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        directory = await it.fetch()
        with trio.socket.socket() as unheard:
            await unheard.bind(("127.0.0.1", 0))  # and never listens
            it.fake.hub = f"http://127.0.0.1:{unheard.getsockname()[1]}"
            assert await it.fetch() == directory


async def test_a_gated_models_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        it.fake.status[SINGLE] = 403
        for files in ("all", "metadata"):
            with pytest.raises(CheckpointError, match="accept the terms"):
                await it.fetch(files)


async def test_a_hub_that_names_places_outside_is_not_followed(tmp_path: Path) -> None:
    outside = {"rfilename": "../../../evil.safetensors", "size": 1, "blobId": "0" * 40}
    blob = {"rfilename": "tokenizer.json", "size": 1, "blobId": "../../../../evil"}
    async with neuron(SINGLE_FILES | {"tokenizer.json": b"x"}, tmp_path / "cache") as it:
        it.fake.announced = [outside, blob]
        await it.fetch()
        assert set(os.listdir(tmp_path)) == {"cache"}
        assert set(contents(it.snapshot)) == set(SINGLE_FILES)
        it.fake.commit = "../../../evil"
        with pytest.raises(CheckpointError, match="names no commit"):
            await it.fetch()


async def test_a_name_the_hub_does_not_allow_is_the_callers_mistake(tmp_path: Path) -> None:
    hub = HuggingFaceHub(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(BadRequest):
        await hub.fetch("org/model.git", progress=lambda *_: None, files="all")


async def test_a_full_disk_is_said(tmp_path: Path) -> None:
    async with neuron(SINGLE_FILES, tmp_path) as it:
        full = partial_of(it.folder / "blobs" / etag(SINGLE, SINGLE_FILES[SINGLE]))
        full.parent.mkdir(parents=True)
        full.symlink_to("/dev/full")
        with pytest.raises(DiskFull, match="is full"):
            await it.fetch()


async def test_a_cache_that_is_no_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    async with neuron(SINGLE_FILES, tmp_path / "cache") as it:
        with pytest.raises(SourceUnavailable, match="cache of models cannot be used"):
            await it.fetch()


async def _checkpoint(directory: Path) -> dict[str, bytes]:
    return await trio.to_thread.run_sync(lambda: contents(write_checkpoint(directory)))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
async def test_headers_alone_give_the_same_estimate(tmp_path: Path, ranges: bool) -> None:
    files = await _checkpoint(tmp_path / "original")
    async with neuron(files, tmp_path / "cache") as it:
        it.fake.ranges = ranges
        directory = await it.fetch("metadata")
        wanted = estimate(tmp_path / "original", free_bytes=1 << 30)
        assert estimate(directory, free_bytes=1 << 30) == wanted
        assert not (it.snapshot / SINGLE).exists()
        assert not (it.folder / "refs").exists()  # offline, it is no snapshot to serve
        it.fake.asked.clear()
        assert await it.fetch("metadata") == directory
        assert [asked.file for asked in it.fake.asked] == [None]
        full = await it.fetch()
        assert contents(full) == files
        assert await it.fetch("metadata") == full


async def test_a_long_header_is_fetched_whole(tmp_path: Path) -> None:
    files = await _checkpoint(tmp_path / "original")
    data = files[SINGLE]
    length = int.from_bytes(data[:8], "little")
    padded = length + 300_000
    files[SINGLE] = (
        padded.to_bytes(8, "little") + data[8 : 8 + length] + b" " * 300_000 + data[8 + length :]
    )
    async with neuron(files, tmp_path / "cache") as it:
        directory = await it.fetch("metadata")
        assert (directory / SINGLE).stat().st_size == len(files[SINGLE])
        assert (directory / SINGLE).read_bytes()[: 8 + padded] == files[SINGLE][: 8 + padded]
        assert estimate(directory, free_bytes=1 << 30).total > 0


@pytest.mark.parametrize("weights", [b"", b"1234567", b"\xff" * 64], ids=["empty", "short", "long"])
async def test_what_has_no_header_is_refused(tmp_path: Path, weights: bytes) -> None:
    async with neuron(SINGLE_FILES | {SINGLE: weights}, tmp_path) as it:
        with pytest.raises(CheckpointError, match="no safetensors header"):
            await it.fetch("metadata")


def test_the_cache_is_the_first_that_is_named() -> None:
    environ = {"HF_HUB_CACHE": "/one", "HF_HOME": "/two", "XDG_CACHE_HOME": "/three"}
    assert cache_directory(NeuronConfig(hf_cache=Path("/zero")), environ) == Path("/zero")
    assert cache_directory(NeuronConfig(), environ) == Path("/one")
    del environ["HF_HUB_CACHE"]
    assert cache_directory(NeuronConfig(), environ) == Path("/two/hub")
    del environ["HF_HOME"]
    assert cache_directory(NeuronConfig(), environ) == Path("/three/huggingface/hub")
    assert cache_directory(NeuronConfig(), {}) == Path.home() / ".cache/huggingface/hub"


def test_settings_come_before_the_environment() -> None:
    environ = {"HF_ENDPOINT": "http://mirror/", "HF_TOKEN": " hf_x\n", "HF_HUB_OFFLINE": "yes"}
    hub = HuggingFaceHub.from_config(NeuronConfig(), environ)
    assert (hub.endpoint, hub.token, hub.offline) == ("http://mirror", "hf_x", True)
    hub = HuggingFaceHub.from_config(NeuronConfig(hub_endpoint="http://own"), {"HF_TOKEN": ""})
    assert (hub.endpoint, hub.token, hub.offline) == ("http://own", None, False)
    assert HuggingFaceHub.from_config(NeuronConfig(offline=True), {}).offline
