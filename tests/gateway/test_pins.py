from __future__ import annotations

import json
import os

import pytest

from cortex.config.errors import ConfigError
from cortex.errors import Conflict, InternalError, NotFound
from cortex.gateway.pins import NAME, Pin, Pins


def test_a_pin_holds_a_model_on_a_node_or_everywhere(tmp_path):
    pins = Pins(tmp_path)
    pins.pin("m", "a")
    pins.pin("n")
    assert [pins.holds(node, model) for node in "ab" for model in "mn"] == [True, True, False, True]
    assert pins.all() == (Pin("m", "a"), Pin("n"))


def test_pins_survive_the_process(tmp_path):
    folder = tmp_path / "state"  # made when it is needed
    Pins(folder).pin("m", "a")
    assert Pins(folder).all() == (Pin("m", "a"),)
    Pins(folder).unpin("m", "a")
    assert Pins(folder).all() == ()
    assert os.listdir(folder) == [NAME]


def test_without_a_directory_they_last_as_long_as_the_process():
    pins = Pins()
    pins.pin("m")
    assert pins.holds("a", "m")
    assert not Pins().holds("a", "m")


def test_unpinning_takes_back_what_was_named():
    pins = Pins()
    for node in (None, "a", "b"):
        pins.pin("m", node)
    assert pins.unpin("m", "b") == (Pin("m", "b"),)
    assert pins.holds("b", "m")  # it is pinned everywhere still
    assert pins.unpin("m") == (Pin("m"), Pin("m", "a"))
    assert pins.all() == ()


def test_what_is_not_pinned_cannot_be_unpinned():
    pins = Pins()
    with pytest.raises(NotFound, match="m is not pinned on a"):
        pins.unpin("m", "a")
    pins.pin("m")
    with pytest.raises(Conflict, match="on every node"):
        pins.unpin("m", "a")
    assert pins.holds("a", "m")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b'{"pins": [{"node": "a"}]}', b'{"pins": {}}', b"\xff"]
)
def test_a_file_that_makes_no_sense_ends_the_start_and_stays(tmp_path, content):
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"pins\.json: is no list of pins"):
        Pins(tmp_path)
    assert path.read_bytes() == content


def test_a_pin_that_cannot_be_stored_is_not_set(tmp_path):
    pins = Pins(tmp_path / "file" / "x")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InternalError, match="cannot be stored"):
        pins.pin("m")
    assert not pins.holds("a", "m")


def test_the_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    pins = Pins(tmp_path)
    pins.pin("m")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError, match="No space left"):
        pins.pin("n")
    assert json.loads((tmp_path / NAME).read_text())["pins"] == [{"model": "m", "node": None}]
    assert os.listdir(tmp_path) == [NAME]
