"""Values of options that click has no type for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    Numbers: TypeAlias = click.ParamType[tuple[int, ...]]
    Number: TypeAlias = click.ParamType[float]
else:  # generic only in newer versions of click
    Numbers = Number = click.ParamType


class Counts(Numbers):
    """Whole numbers between *least* and *most*, with commas between them: ``1,8,32``."""

    name = "N,N,..."

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdecimal() for word in words):
            self.fail(f"{value!r} is no list of whole numbers", param, ctx)
        numbers = tuple(int(word) for word in words)
        if not all(self._least <= number <= self._most for number in numbers):
            self.fail(f"each must be from {self._least} to {self._most}", param, ctx)
        return tuple(dict.fromkeys(numbers))


class Part(Number):
    """A share in percent, as a part of one: ``10%`` or ``10`` is 0.1."""

    name = "PERCENT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            percent = float(str(value).strip().removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is no percentage", param, ctx)
        if not 0 <= percent <= 1000:
            self.fail("must be from 0% to 1000%", param, ctx)
        return percent / 100
