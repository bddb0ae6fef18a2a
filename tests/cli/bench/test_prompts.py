from __future__ import annotations

import pytest

from cortex.cli.bench.prompts import WORDS, Length, Prompts


def test_prompts_differ_from_their_beginning_on() -> None:
    prompts = Prompts(7)
    made = [prompts.next(50) for _ in range(200)]
    assert all(len(each.split()) == 50 for each in made)
    assert len({tuple(each.split()[:4]) for each in made}) == 200


def test_the_same_seed_makes_the_same_prompts() -> None:
    one, other = Prompts(7), Prompts(7)
    assert [one.next(9) for _ in range(3)] == [other.next(9) for _ in range(3)]
    assert Prompts(8).next(9) != Prompts(7).next(9)


@pytest.mark.parametrize("words", [1, 5, 20, 60])
def test_a_shared_prefix_is_shared_and_the_rest_is_not(words: int) -> None:
    prompts = Prompts(7, shared=20)
    first, second = (prompts.next(words).split() for _ in range(2))
    assert len(first) == words
    shared = min(20, words - 1)
    assert first[:shared] == second[:shared]
    if words > 24:
        assert first[20:] != second[20:]


def test_words_are_counted_as_the_endpoint_counts() -> None:
    length = Length.between((8, 136), (8 * 2 + 11, 136 * 2 + 11))
    assert length == Length(2.0, 11.0)
    assert length.words(1011) == 500
    assert length.words(3) == 1


def test_an_endpoint_that_counts_nothing_is_not_believed() -> None:
    assert Length.between((8, 136), (5, 5)) == Length()


def test_the_words_are_each_there_once() -> None:
    assert len(set(WORDS)) == len(WORDS) > 200
