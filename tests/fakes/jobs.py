"""One job of every kind there is, found by looking: a new kind cannot be forgotten in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
from fakes.engine import request

from cortex.neuron.jobs import Job, Stop

# What a field of a job is given, by its name.
VALUES: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "key": lambda touch: 1,
    "request": lambda touch: request("late"),
    "request_id": lambda touch: "a",
    "open": lambda touch: touch,
    "fn": lambda touch: touch,
}


def kinds(base: type[Job] = Job) -> Iterator[type[Job]]:
    """Every kind of job but `Stop`, which ends the loop."""
    for kind in base.__subclasses__():
        if kind is not Stop:
            yield kind
        yield from kinds(kind)


def make(kind: type[Job], touch: Callable[..., Any]) -> Job:
    """A job of *kind* for the engine 1; *touch* is what its device would run."""
    needed = [field for field in attrs.fields(kind) if field.default is attrs.NOTHING]
    unknown = [field.name for field in needed if field.name not in VALUES]
    assert not unknown, f"fakes.jobs does not know what to put into {kind.__name__}.{unknown}"
    return kind(**{field.name: VALUES[field.name](touch) for field in needed})


def every_kind(touch: Callable[..., Any]) -> list[Job]:
    return [make(kind, touch) for kind in kinds()]
