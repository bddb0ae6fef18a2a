"""GGUF files on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.gguf_files import STRING, array, file, row, text, u32, write

from cortex.engine.load import gguf_file
from cortex.engine.load.gguf_file import GgufFile, read_metadata
from cortex.errors import CheckpointError

DATA = bytes(range(64))


def good(path: Path, tokens: int = 3) -> Path:
    listed = array("tokens", STRING, tokens, text("tok") * tokens)
    return write(path, file([u32("k", 7), listed], [row("t", [4]), row("u", [8], 0, 32)], DATA))


def test_tensors_are_read_and_the_count_is_told(tmp_path: Path):
    heard: list[int] = []
    with GgufFile(good(tmp_path / "a.gguf")) as opened:
        target = bytearray(32)
        opened.read_into(opened.entries["u"], memoryview(target), heard.append)
        assert target == DATA[32:]
        assert heard == [32]


def test_a_long_header_is_read_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_file, "FIRST_BYTES", 100)
    metadata = read_metadata(good(tmp_path / "a.gguf", tokens=500))
    assert metadata["tokens"] == ["tok"] * 500


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_what_cannot_be_opened_is_told_by_name(tmp_path: Path, make: object):
    make(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"^a\.gguf cannot be read"):
        GgufFile(tmp_path / "a.gguf")


def test_a_file_truncated_while_it_is_read_is_an_error_and_no_signal(tmp_path: Path):
    path = good(tmp_path / "a.gguf")
    with GgufFile(path) as opened:
        os.truncate(path, opened.entries["u"].begin + 3)
        with pytest.raises(CheckpointError, match="truncated while"):
            opened.read_into(opened.entries["u"], memoryview(bytearray(32)), lambda read: None)


def test_a_bad_file_is_closed(tmp_path: Path):
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("there is no /proc here")
    before = len(list(open_files.iterdir()))
    path = write(tmp_path / "a.gguf", b"GGUF")
    with pytest.raises(CheckpointError, match="truncated"):
        GgufFile(path)
    assert len(list(open_files.iterdir())) == before
