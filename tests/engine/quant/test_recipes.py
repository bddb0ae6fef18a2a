"""Names of quantisations, and what they mean for each weight."""

from __future__ import annotations

import pytest

from cortex.engine.quant.recipes import ALIASES, RECIPES, find_recipe, fitting
from cortex.engine.quant.types import FP8, Q4_K, Q5_K, Q6_K, Q8_0, QuantType
from cortex.errors import UnsupportedLoad

LAYER = "model.layers.{}."
QUERY, VALUE, DOWN = "self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("asked", "name"),
    [("q8_0", "q8_0"), ("Q6_K", "q6_k"), ("Q4_K_M", "q4_k_m"), ("Q4_K", "q4_k_m"),
     ("q5k", "q5_k_m"), ("Q4_k_S", "q4_k_s"), ("FP8", "fp8")],
)  # fmt: skip
def test_names_are_found_in_any_case_and_by_their_short_forms(asked: str, name: str):
    assert find_recipe(asked) is RECIPES[name]


def test_every_alias_leads_to_a_recipe():
    assert set(ALIASES.values()) <= set(RECIPES)
    assert not set(ALIASES) & set(RECIPES)


@pytest.mark.parametrize(
    ("asked", "near"), [("q4km", "q4_k_m"), ("q8_1", "q8_0"), ("zzz", None), ("x" * 300, None)]
)
def test_an_unknown_name_is_told_with_the_known_and_the_nearest(asked: str, near: str | None):
    with pytest.raises(UnsupportedLoad, match="known: q8_0, q6_k, q5_k_m") as caught:
        find_recipe(asked)
    assert caught.value.param == "quant"
    assert ("did you mean" in caught.value.message) == (near is not None)
    assert near is None or f"did you mean {near}?" in caught.value.message
    assert len(caught.value.message) < 300


def layers_refined(name: str, layers: int, weight: str, finer: QuantType) -> list[int]:
    storage = find_recipe(name).storage(layers)
    kinds = [storage(LAYER.format(i) + weight, (512, 512)) for i in range(layers)]
    return [i for i, kind in enumerate(kinds) if kind == finer]


def test_values_and_the_way_out_of_the_mlp_are_finer_in_half_of_the_layers():
    first, last = [0, 1], [14, 15]
    expected = [*first, 4, 7, 10, 13, *last]
    for weight in (VALUE, DOWN):
        assert layers_refined("q4_k_m", 16, weight, Q6_K) == expected
        assert layers_refined("q5_k_m", 16, weight, Q6_K) == expected
        assert layers_refined("q4_k_s", 16, weight, Q6_K) == []
        assert layers_refined("q6_k", 16, weight, Q6_K) == list(range(16))
    assert layers_refined("q4_k_m", 16, QUERY, Q4_K) == list(range(16))
    assert layers_refined("q5_k_s", 16, DOWN, Q5_K) == list(range(16))


@pytest.mark.parametrize("table", ["model.embed_tokens.weight", "lm_head.weight"])
def test_the_vocabulary_is_finer_than_the_layers(table: str):
    kinds = {name: recipe.storage(4)(table, (1000, 512)) for name, recipe in RECIPES.items()}
    assert kinds["q8_0"] == Q8_0
    assert kinds["fp8"] is None
    assert {kind for name, kind in kinds.items() if name not in ("q8_0", "fp8")} == {Q6_K}


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.0.mlp.gate.weight", "rope_freqs.weight",
             "model.layers.0.self_attn.q_proj.bias"],
)  # fmt: skip
def test_what_is_no_projection_stays_dense(name: str):
    assert all(recipe.storage(4)(name, (512, 512)) is None for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (Q4_K, (3, 512), Q4_K),
        (Q4_K, (3, 896), Q8_0),
        (Q6_K, (3, 32), Q8_0),
        (Q4_K, (3, 48), None),
        (Q8_0, (3, 80), None),
        (FP8, (256, 384), FP8),
        (FP8, (192, 384), None),
        (FP8, (256, 320), None),
    ],
)
def test_rows_that_are_no_whole_blocks_fall_back(
    kind: QuantType, shape: tuple[int, int], expected: QuantType | None
):
    assert fitting(kind, shape) == expected
