"""Pulls: what they find, what they refuse, what they repair."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import huggingface_hub
import pytest
import trio
from fakes.hub import FakeHub, etag, running

from cortex.errors import BadRequest, CheckpointError, DiskFull, SourceUnavailable
from cortex.neuron import hub as hub_module
from cortex.neuron.download import ATTEMPTS, Patience
from cortex.neuron.hub import LOOK_UPS, SPARE_BYTES, HuggingFaceHub, free_bytes
from cortex.neuron.hub_files import SINGLE, Pulled
from cortex.neuron.partial_file import partial_of

HASTE = Patience(listing=10, read=10, back_off=0, lock_poll=0.001)
WEIGHTS = b"weights" * 1000
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", SINGLE: WEIGHTS}
SIZE = sum(map(len, FILES.values()))


@attrs.define(eq=False)
class Puller:
    fake: FakeHub
    cache: Path
    free: Callable[[Path], int] = free_bytes
    offline: bool = False
    heard: list[tuple[str, int, int]] = attrs.field(factory=list)

    @property
    def folder(self) -> Path:
        return self.cache / "models--org--model"

    @property
    def weights(self) -> Path:
        return self.folder / "blobs" / etag(SINGLE, WEIGHTS)

    async def pull(self, *, verify: bool = False, revision: str | None = None) -> Pulled:
        self.heard.clear()
        hub = HuggingFaceHub(
            self.cache, self.fake.hub, None, self.offline, HASTE, free_bytes=self.free
        )

        def hear(stage: str, done: int, total: int) -> None:
            self.heard.append((stage, done, total))

        with trio.fail_after(20):
            return await hub.pull("org/model", progress=hear, verify=verify, revision=revision)


@pytest.fixture(autouse=True)
def _close_the_librarys_connections() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


@asynccontextmanager
async def puller(tmp_path: Path) -> AsyncIterator[Puller]:
    async with running(FILES) as fake:
        yield Puller(fake, tmp_path / "hub")


async def test_a_hub_that_never_ends_its_answer_takes_few_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks leaves after a while; the thread cannot."""
    release, begun = threading.Event(), 0

    def hang(*_: object, **__: object) -> None:
        nonlocal begun
        begun += 1
        release.wait(20)

    monkeypatch.setattr(hub_module, "list_files", hang)
    hub = HuggingFaceHub(tmp_path, patience=attrs.evolve(HASTE, listing=0.01))
    try:
        for _ in range(2 * LOOK_UPS):
            with pytest.raises(SourceUnavailable), trio.fail_after(5):
                await hub.pull("org/model", progress=lambda *_: None)
        assert begun == LOOK_UPS
    finally:
        release.set()


async def test_a_pull_says_what_it_brought_and_the_next_that_it_is_here(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        first = await it.pull()
        assert (first.size, first.fetched, first.online) == (SIZE, SIZE, True)
        assert first.path == it.folder / "snapshots" / it.fake.commit
        it.fake.asked.clear()
        assert (await it.pull()).fetched == 0
        assert [asked.file for asked in it.fake.asked] == [None]  # the listing alone


@pytest.mark.parametrize("how", ["configured", "gone", "broken"])
async def test_what_is_here_is_here_without_the_hub(tmp_path: Path, how: str) -> None:
    async with puller(tmp_path) as it:
        before = await it.pull()
        if how == "configured":
            it.offline = True
        elif how == "gone":
            it.fake.hub = "http://127.0.0.1:1"
        else:
            it.fake.listing_status = 500
        after = await it.pull()
        assert (after.path, after.commit, after.size) == (before.path, before.commit, before.size)
        assert (after.fetched, after.online) == (0, False)


async def test_what_is_not_here_is_not_here_without_the_hub(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        it.offline = True
        with pytest.raises(SourceUnavailable, match="not in the cache"):
            await it.pull()


async def test_a_hub_that_goes_in_the_middle_leaves_what_came(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        it.fake.cuts.extend([2, 2, 3000] + [0] * ATTEMPTS)  # two small files, then the weights
        with pytest.raises(SourceUnavailable, match="cannot be fetched"):
            await it.pull()
        assert partial_of(it.weights).read_bytes() == WEIGHTS[:3000]
        it.fake.cuts.clear()
        await it.pull()
        assert it.fake.bodies(SINGLE)[-1].headers["range"] == "bytes=3000-"
        assert it.weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [401, 403])
async def test_a_gated_file_says_what_to_do(tmp_path: Path, status: int) -> None:
    async with puller(tmp_path) as it:
        it.fake.status[SINGLE] = status
        with pytest.raises(CheckpointError, match=r"HF_TOKEN|accept the terms"):
            await it.pull()


async def test_altered_bytes_are_refused(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        it.fake.instead[SINGLE] = b"x" + WEIGHTS[1:]
        with pytest.raises(SourceUnavailable, match="damaged"):
            await it.pull()
        assert not it.weights.exists()


async def test_a_revision_is_another_ref_of_the_cache(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        it.fake.revisions.add("refs/pr/1")
        pulled = await it.pull(revision="refs/pr/1")
        assert (it.folder / "refs" / "refs/pr/1").read_text() == pulled.commit
        assert not (it.folder / "refs" / "main").exists()
        it.offline = True
        assert (await it.pull(revision="refs/pr/1")).path == pulled.path
        assert (await it.pull(revision=pulled.commit)).path == pulled.path
        with pytest.raises(SourceUnavailable):
            await it.pull()


async def test_a_revision_that_is_not_there_or_none_is_said(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        with pytest.raises(CheckpointError, match="no revision v9"):
            await it.pull(revision="v9")
        for wrong in ("", "../x", "a//b", "/etc", "-x", "a b"):
            with pytest.raises(BadRequest, match="is no revision"):
                await it.pull(revision=wrong)
        assert not it.folder.exists()


# Room on the disk


async def test_too_little_room_is_said_before_anything_is_begun(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        it.free = lambda _: SPARE_BYTES + len(WEIGHTS) - 1
        with pytest.raises(DiskFull, match="needs 0 MiB more") as caught:
            await it.pull()
        assert set(caught.value.extras) == {"required_mb", "free_mb"}
        assert it.fake.bodies(SINGLE) == []


async def test_what_was_fetched_before_needs_no_room_again(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        partial_of(it.weights).parent.mkdir(parents=True)
        partial_of(it.weights).write_bytes(WEIGHTS[:5000])
        it.free = lambda _: SPARE_BYTES + len(WEIGHTS) - 5000
        await it.pull()
        it.free = lambda _: 0
        await it.pull()


def test_the_room_is_that_of_the_disk_that_a_folder_will_be_on(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0


# Verifying


async def test_what_is_intact_is_verified_without_a_transfer(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        await it.pull()
        it.fake.asked.clear()
        pulled = await it.pull(verify=True)
        assert (pulled.fetched, pulled.repaired) == (0, ())
        assert [asked.file for asked in it.fake.asked] == [None]
        assert ("verify", len(WEIGHTS), len(WEIGHTS)) in it.heard


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
async def test_what_is_damaged_is_fetched_again(tmp_path: Path, name: str) -> None:
    async with puller(tmp_path) as it:
        path = (await it.pull()).path / name
        path.write_bytes(b"x" * len(FILES[name]))
        assert (await it.pull()).repaired == ()  # its length is right, so nobody sees it
        pulled = await it.pull(verify=True)
        assert (pulled.repaired, pulled.fetched) == ((name,), len(FILES[name]))
        assert path.read_bytes() == FILES[name]
        assert path.resolve() == it.folder / "blobs" / etag(name, FILES[name])


async def test_what_a_link_out_of_the_cache_leads_to_stays(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        path = (await it.pull()).path / SINGLE
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"x" * len(WEIGHTS))
        path.unlink()
        path.symlink_to(elsewhere)
        assert (await it.pull(verify=True)).repaired == (SINGLE,)
        assert path.read_bytes() == WEIGHTS
        assert elsewhere.read_bytes() == b"x" * len(WEIGHTS)


async def test_damage_is_found_without_the_hub_too(tmp_path: Path) -> None:
    async with puller(tmp_path) as it:
        path = (await it.pull()).path / SINGLE
        it.offline = True
        assert (await it.pull(verify=True)).size == SIZE
        path.write_bytes(b"x" * len(WEIGHTS))
        with pytest.raises(CheckpointError, match=f"damaged, and .*: {SINGLE}"):
            await it.pull(verify=True)
        assert path.exists()
