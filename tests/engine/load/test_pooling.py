"""What sentence-transformers' files say of pooling, and what hostile ones get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cortex.engine.load.pooling import EmbeddingRecipe, read_recipe
from cortex.engine.request import Pooling
from cortex.errors import CheckpointError

TYPE = "sentence_transformers.models."
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": TYPE + "Transformer"}
POOL = {"idx": 1, "name": "1", "path": "1_Pooling", "type": TYPE + "Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": TYPE + "Normalize"}
# As Qwen3-Embedding's folder has it.
LAST = {
    "word_embedding_dimension": 1024,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": True,
    "include_prompt": True,
}
MEAN = {**LAST, "pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}


def written(
    directory: Path, modules: Any = None, pooling: Any = None, folder: str = "1_Pooling"
) -> Path:
    if modules is not None:
        (directory / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (directory / folder).mkdir()
        (directory / folder / "config.json").write_text(json.dumps(pooling))
    return directory


def test_without_files_it_is_the_last_token_at_length_1(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) == EmbeddingRecipe(Pooling.LAST, normalize=True, stated=False)


@pytest.mark.parametrize(
    ("modules", "pooling", "mode", "normalize"),
    [
        ([TRANSFORMER, POOL, NORMALIZE], LAST, Pooling.LAST, True),
        ([TRANSFORMER, POOL, NORMALIZE], MEAN, Pooling.MEAN, True),
        ([TRANSFORMER, POOL], MEAN, Pooling.MEAN, False),
        (None, LAST, Pooling.LAST, True),
        ([TRANSFORMER, POOL], {"pooling_mode": "lasttoken"}, Pooling.LAST, False),
        ([TRANSFORMER, POOL], {"pooling_mode": ["mean"]}, Pooling.MEAN, False),
    ],
)
def test_the_files_decide(
    tmp_path: Path, modules: Any, pooling: Any, mode: Pooling, normalize: bool
) -> None:
    recipe = read_recipe(written(tmp_path, modules, pooling))
    assert recipe == EmbeddingRecipe(mode, normalize, stated=True)


def test_the_pooling_folder_is_the_one_that_is_named(tmp_path: Path) -> None:
    modules = [TRANSFORMER, {**POOL, "path": "2_Pool"}]
    assert read_recipe(written(tmp_path, modules, MEAN, "2_Pool")).pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("modules", "pooling", "word"),
    [
        ([TRANSFORMER, POOL], {**MEAN, "pooling_mode_cls_token": True}, "cls_token"),
        (
            [TRANSFORMER, POOL],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            "cls_token",
        ),
        ([TRANSFORMER, POOL], {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ([TRANSFORMER, POOL], {"pooling_mode": {"a": 1}}, "pooling by"),
        ([TRANSFORMER, POOL], {}, "no mode"),
        ([TRANSFORMER, POOL, {"type": TYPE + "Dense", "path": "2_Dense"}], LAST, "Dense"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, modules: Any, pooling: Any, word: str) -> None:
    recipe = read_recipe(written(tmp_path, modules, pooling))
    assert recipe.stated
    assert recipe.refusal is not None
    assert word in recipe.refusal


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        ({}, LAST),
        (["x"], LAST),
        ([{}], LAST),
        ([{"type": 5}], LAST),
        ([TRANSFORMER], LAST),
        ([{**POOL, "path": "../1_Pooling"}], LAST),
        ([{**POOL, "path": "/etc"}], LAST),
        ([{**POOL, "path": ".."}], LAST),
        ([{**POOL, "path": 7}], LAST),
        ([POOL], None),
        ([POOL], []),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    tmp_path: Path, modules: Any, pooling: Any
) -> None:
    with pytest.raises(CheckpointError):
        read_recipe(written(tmp_path, modules, pooling))
