"""What a load request's ``quant`` means for each weight of a checkpoint that is not quantised.

The names, and which weights are kept finer than others, are those that GGUF files are made by
(llama.cpp's mixes), so that a name means about the same size and quality here as there. No torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

import attrs

from cortex.engine.quant import types
from cortex.engine.quant.types import FP8, Q6_K, Q8_0, QuantType
from cortex.errors import UnsupportedLoad, clip

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_SENSITIVE = re.compile(r".*\.layers\.(\d+)\.(?:self_attn\.v_proj|mlp\.down_proj)\.weight")


@attrs.frozen
class Recipe:
    """``kind`` is every projection's format, ``table`` embedding's and head's (None: dense).

    ``refined`` is that of the projections to values and out of the MLP, in half of the layers.
    """

    name: str
    kind: QuantType
    table: QuantType | None
    refined: QuantType | None = None

    def storage(self, layers: int) -> Callable[[str, tuple[int, int]], QuantType | None]:
        """The format of the weight of a name and a ``(rows, inputs)`` in a model of so many
        *layers*; None for what stays dense: norms, routers, what fits no block."""

        def storage(name: str, shape: tuple[int, int]) -> QuantType | None:
            kind: QuantType | None = None
            if name in TABLES:
                kind = self.table
            elif name.endswith("_proj.weight"):
                found = _SENSITIVE.fullmatch(name)
                finer = found is not None and _matters(int(found[1]), layers)
                kind = self.refined if finer and self.refined is not None else self.kind
            return None if kind is None else fitting(kind, shape)

        return storage


def _matters(layer: int, layers: int) -> bool:
    """Whether *layer* is among the first or the last eighth, or every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def fitting(kind: QuantType, shape: tuple[int, int]) -> QuantType | None:
    """*kind* where rows of ``(rows, inputs)`` are whole blocks of it; else Q8_0, whose blocks are
    the smallest, and None where not even they fit. FP8 falls back to None at once, and needs whole
    blocks of rows too, since weights are stacked."""
    rows, inputs = shape
    if kind == FP8:
        return kind if rows % FP8.block == 0 and inputs % FP8.block == 0 else None
    if inputs % kind.block == 0:
        return kind
    return Q8_0 if inputs % Q8_0.block == 0 else None


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("q8_0", Q8_0, Q8_0),
        Recipe("q6_k", Q6_K, Q6_K),
        Recipe("q5_k_m", types.Q5_K, Q6_K, Q6_K),
        Recipe("q5_k_s", types.Q5_K, Q6_K),
        Recipe("q5_1", types.Q5_1, Q6_K),
        Recipe("q5_0", types.Q5_0, Q6_K),
        Recipe("q4_k_m", types.Q4_K, Q6_K, Q6_K),
        Recipe("q4_k_s", types.Q4_K, Q6_K),
        Recipe("q4_1", types.Q4_1, Q6_K),
        Recipe("q4_0", types.Q4_0, Q6_K),
        Recipe("fp8", FP8, None),
    )
}
ALIASES = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}
ALIASES |= {"q8": "q8_0", "q6k": "q6_k", "q5k": "q5_k_m", "q4k": "q4_k_m"}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, in any case. UnsupportedLoad names the known and the nearest."""
    asked = name.casefold()
    found = RECIPES.get(ALIASES.get(asked, asked))
    if found is not None:
        return found
    near = difflib.get_close_matches(asked, [*RECIPES, *ALIASES], 1, 0.5)
    hint = f" (did you mean {ALIASES.get(near[0], near[0])}?)" if near else ""
    raise UnsupportedLoad(
        f"quant '{clip(name, 40)}' is not known{hint}; known: {', '.join([*RECIPES, *ALIASES])}",
        param="quant",
    )
