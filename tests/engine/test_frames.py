"""What an exception holds on to."""

from __future__ import annotations

import weakref

from cortex.engine.frames import let_go_of_tensors


class Tensor:
    pass


def test_the_frames_of_an_error_and_of_its_causes_are_emptied():
    refs: list[weakref.ref[Tensor]] = []

    def inner() -> None:
        tensor = Tensor()
        refs.append(weakref.ref(tensor))
        raise KeyError("inner")

    def outer() -> None:
        tensor = Tensor()
        refs.append(weakref.ref(tensor))
        try:
            inner()
        except KeyError as exc:
            raise ValueError("outer") from exc

    caught: Exception | None = None
    try:
        outer()
    except ValueError as exc:
        caught = exc
    assert caught is not None
    assert all(ref() is not None for ref in refs)
    let_go_of_tensors(caught)
    assert [ref() for ref in refs] == [None, None]
    assert caught.__traceback__ is not None


def test_a_chain_that_bites_its_tail_ends():
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    let_go_of_tensors(one)
