"""What one process leaves to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortex.neuron import resident_file
from cortex.neuron.resident_file import Legacy
from cortex.wire.neuron import LoadRequest

LEGACY = Legacy(
    (LoadRequest("a", source="org/a", context=100, devices=(1,)), LoadRequest("b")), (1.5, 2.5), 7
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    assert resident_file.read(state) == Legacy()
    resident_file.write(state, LEGACY)
    assert resident_file.read(state) == LEGACY
    assert os.listdir(state) == [resident_file.NAME]  # no draft is left


def test_a_write_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident_file.write(tmp_path, LEGACY)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        resident_file.write(tmp_path, Legacy())
    assert resident_file.read(tmp_path) == LEGACY
    assert os.listdir(tmp_path) == [resident_file.NAME]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"requests": 7}',
        b'{"requests": [{"model_id": 1}]}',
        b"\xff\xfe",
        b"null",
    ],
)
def test_what_makes_no_sense_is_put_aside(tmp_path: Path, body: bytes) -> None:
    (tmp_path / resident_file.NAME).write_bytes(body)
    assert resident_file.read(tmp_path) == Legacy()
    assert os.listdir(tmp_path) == ["residents.broken"]


def test_settling_forgets_the_models_but_not_the_restarts(tmp_path: Path) -> None:
    resident_file.settle(tmp_path)
    resident_file.write(tmp_path, LEGACY)
    resident_file.settle(tmp_path)
    assert resident_file.read(tmp_path) == Legacy((), (1.5, 2.5), 7)
    resident_file.write(tmp_path, Legacy(LEGACY.requests))
    resident_file.settle(tmp_path)
    assert os.listdir(tmp_path) == []
