"""Prompts of about a wanted number of tokens, each unlike the others from its first word on."""

from __future__ import annotations

import random

import attrs

# Common words: most tokenizers have each, with the space before it, as one token.
_TEXT = (
    "about after again air all along also always another any around away back because been "
    "before below between both boy came change come could country day different does down each "
    "earth end even every example eye face family far father feet find first follow food form "
    "found four give good great group grow hand hard head help here high home house idea "
    "important it keep kind know land large last late learn leave left letter life light line "
    "list little live long look made make many mean men might mile more most mother mountain "
    "move much must name near need never new next night number often old once one only open "
    "other our out over own page paper part people picture place plant play point put question "
    "quick quite read really right river run said same saw say school sea second see seem "
    "sentence set several she should show side small some something song soon sound spell start "
    "state still stop story study such sun take talk tell than that their them then there these "
    "they thing think this thought three through time together too took tree try turn two under "
    "until use very walk want was watch water way well went were what when where which while "
    "white who why will with without word work world would write year you young your"
)
WORDS = tuple(_TEXT.split())


@attrs.frozen
class Length:
    """How an endpoint counts: ``each`` token a word, and ``beside`` them what a template adds."""

    each: float = 1.0
    beside: float = 0.0

    @classmethod
    def between(cls, words: tuple[int, int], tokens: tuple[int, int]) -> Length:
        """By two prompts: their numbers of words, and what they were counted as."""
        each = (tokens[1] - tokens[0]) / (words[1] - words[0])
        return cls() if each <= 0 else cls(each, tokens[0] - each * words[0])

    def words(self, tokens: int) -> int:
        """Of a prompt of *tokens*; at least one."""
        return max(1, round((tokens - self.beside) / self.each))


@attrs.define(eq=False)
class Prompts:
    """The same ones for the same *seed*. The first *shared* words are the same in all of them."""

    seed: int = 0
    shared: int = 0
    _random: random.Random = attrs.field(init=False)
    _prefix: list[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._prefix = self._random.choices(WORDS, k=self.shared)

    def next(self, words: int) -> str:
        own = self._random.choices(WORDS, k=max(1, words - self.shared))
        return " ".join([*self._prefix[: max(0, words - 1)], *own])
