"""Where in a directory the model is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import CheckpointError, UnsupportedLoad
from cortex.neuron.model_place import is_gguf, place_in, place_of_file


def put(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_a_directory_of_safetensors_is_the_place(tmp_path: Path) -> None:
    assert place_in(tmp_path, None) == tmp_path  # the engine says that nothing is there
    put(tmp_path, "model.safetensors.index.json", "m-Q8_0.gguf")
    assert place_in(tmp_path, None) == tmp_path
    assert place_in(tmp_path, "q4_k") == tmp_path
    assert place_in(tmp_path, "q8_0") == tmp_path / "m-Q8_0.gguf"


def test_a_folder_deeper_is_looked_into(tmp_path: Path) -> None:
    put(tmp_path, "m-Q8_0.gguf", "Q6_K/m-Q6_K-00001-of-00002.gguf")
    with pytest.raises(UnsupportedLoad, match=f"{tmp_path.name} has no q6_k; it has Q8_0"):
        place_in(tmp_path, "q6_k")
    put(tmp_path, "Q6_K/m-Q6_K-00002-of-00002.gguf")
    assert place_in(tmp_path, "q6_k") == tmp_path / "Q6_K/m-Q6_K-00001-of-00002.gguf"


def test_links_that_lead_nowhere_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_K_M.gguf").symlink_to("gone")
    (tmp_path / "m-Q8_0.gguf").mkdir()
    assert place_in(tmp_path, None) == tmp_path


def test_a_file_stands_for_all_its_parts(tmp_path: Path) -> None:
    second = tmp_path / "m-Q4_K_M-00002-of-00002.gguf"
    assert place_of_file(second, None) == tmp_path / "m-Q4_K_M-00001-of-00002.gguf"
    assert place_of_file(second, "Q4_k_m") == tmp_path / "m-Q4_K_M-00001-of-00002.gguf"
    with pytest.raises(UnsupportedLoad, match="is no q8_0") as caught:
        place_of_file(second, "q8_0")
    assert caught.value.param == "quant"
    assert place_of_file(tmp_path / "any.gguf", "q8_0") == tmp_path / "any.gguf"
    with pytest.raises(CheckpointError, match=r"no directory and no \.gguf file"):
        place_of_file(tmp_path / "model.bin", None)
    assert is_gguf(second)
    assert not is_gguf(tmp_path)
