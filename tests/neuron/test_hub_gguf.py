"""GGUF models of a hub: one file of several, in parts, and headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import trio
from fakes.gguf_models import config_of, weights_of, write_gguf
from fakes.gguf_tokenizers import byte_level
from fakes.hub import FakeHub, running

from cortex.engine.load.checkpoint import estimate
from cortex.engine.quant.types import Q4_0, Q8_0, QuantType
from cortex.errors import CheckpointError, SourceUnavailable, UnsupportedLoad
from cortex.neuron import hollow_files
from cortex.neuron.download import Patience
from cortex.neuron.hub import HuggingFaceHub
from cortex.neuron.hub_files import Files
from cortex.neuron.read_text import read_text

HASTE = Patience(listing=10, read=10, back_off=0, lock_poll=0.001)
PLAIN = {"README.md": b"prose", "m-Q4_K_M.gguf": b"weights" * 99, "m-Q8_0.gguf": b"better" * 99}
PARTS = ("Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K/m-Q6_K-00002-of-00002.gguf")
CONFIG = config_of(
    "qwen3",
    hidden_size=64,
    intermediate_size=64,
    head_dim=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=480,
)


@pytest.fixture(autouse=True)
def _close_the_librarys_connections() -> Iterator[None]:
    yield
    huggingface_hub.close_session()


async def fetch(
    fake: FakeHub,
    cache: Path,
    quant: str | None = None,
    files: Files = "all",
    *,
    offline: bool = False,
) -> Path:
    hub = HuggingFaceHub(cache, fake.hub, None, offline, HASTE)
    with trio.fail_after(20):
        return await hub.fetch("org/model", progress=lambda *_: None, files=files, quant=quant)


def bodies(fake: FakeHub) -> list[str]:
    return [asked.file for asked in fake.asked if asked.host == "cdn" and asked.file is not None]


async def test_only_the_file_that_is_meant_is_fetched(tmp_path: Path) -> None:
    async with running(PLAIN | {"generation_config.json": b"{}"}) as fake:
        place = await fetch(fake, tmp_path)
        assert place.name == "m-Q4_K_M.gguf"
        assert place.read_bytes() == PLAIN[place.name]
        assert {path.name for path in place.parent.iterdir()} == {
            "m-Q4_K_M.gguf", "generation_config.json",
        }  # fmt: skip
        assert bodies(fake) == ["m-Q4_K_M.gguf"]
        better = await fetch(fake, tmp_path, "q8_0")
        assert better == place.with_name("m-Q8_0.gguf")
        assert better.read_bytes() == PLAIN[better.name]
        with pytest.raises(UnsupportedLoad, match="org/model has no q5_k; it has Q4_K_M, Q8_0"):
            await fetch(fake, tmp_path, "q5_k")


async def test_all_parts_are_fetched_and_the_first_is_the_model(tmp_path: Path) -> None:
    parts = {PARTS[0]: b"first" * 50, PARTS[1]: b"second" * 50}
    async with running(PLAIN | parts) as fake:
        place = await fetch(fake, tmp_path, "q6_k")
        assert place.as_posix().endswith(PARTS[0])
        assert [place.with_name(Path(p).name).read_bytes() for p in PARTS] == [*parts.values()]
        assert sorted(bodies(fake)) == sorted(PARTS)


async def test_offline_what_is_in_the_cache_is_served(tmp_path: Path) -> None:
    async with running(PLAIN) as fake:
        place = await fetch(fake, tmp_path, "q8_0")
        fake.asked.clear()
        assert await fetch(fake, tmp_path, offline=True) == place
        assert await fetch(fake, tmp_path, "q8_0", offline=True) == place
        with pytest.raises(SourceUnavailable, match=r"offline.*has no q4_k_m; it has Q8_0"):
            await fetch(fake, tmp_path, "q4_k_m", offline=True)
        assert fake.asked == []
        place.resolve().unlink()
        with pytest.raises(SourceUnavailable, match="only in part"):
            await fetch(fake, tmp_path, offline=True)


def choose(name: str) -> QuantType | None:
    return Q8_0 if "mlp" in name else Q4_0


def model(folder: Path, per_file: int = 0) -> dict[str, bytes]:
    folder.mkdir()
    path = folder / "m-Q4_0.gguf"
    weights = weights_of(CONFIG, choose)
    write_gguf(path, CONFIG, weights, metadata=byte_level("qwen2"), per_file=per_file)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("per_file", [0, 6], ids=["one file", "parts"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
async def test_headers_alone_give_the_same_estimate_and_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool, per_file: int
) -> None:
    monkeypatch.setattr(hollow_files, "GGUF_FIRST_BYTES", 1000)  # the header takes several steps
    files = await trio.to_thread.run_sync(model, tmp_path / "original", per_file)
    first = min(files)
    async with running(files) as fake:
        fake.ranges = ranges
        place = await fetch(fake, tmp_path / "cache", files="metadata")
        assert place.name == first
        whole = tmp_path / "original" / first
        assert estimate(place, free_bytes=1 << 30) == estimate(whole, free_bytes=1 << 30)
        assert read_text(place).tokenizer.encode("a b", special=True)
        if ranges:
            parts = [a.headers["range"] for a in fake.bodies(first)]
            assert parts[:3] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-3999"]
            begins = [int(part.removeprefix("bytes=").split("-")[0]) for part in parts]
            assert begins == sorted(set(begins))  # nothing is fetched twice
        assert not (tmp_path / "cache/models--org--model/refs").exists()
        fake.asked.clear()
        assert await fetch(fake, tmp_path / "cache", files="metadata") == place
        assert bodies(fake) == []
        full = await fetch(fake, tmp_path / "cache")
        assert full.read_bytes() == files[first]
        assert await fetch(fake, tmp_path / "cache", files="metadata") == full


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "truncated"), (b"GGU", "truncated"), (b"nothing at all" * 9, "not a GGUF file")],
    ids=["empty", "short", "other"],
)
async def test_what_has_no_header_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    async with running({"m-Q8_0.gguf": data}) as fake:
        with pytest.raises(CheckpointError, match=message):
            await fetch(fake, tmp_path, files="metadata")
