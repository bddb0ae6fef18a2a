"""A value that tasks can wait on."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs
import trio

V = TypeVar("V")


@attrs.define(eq=False)
class Watch(Generic[V]):
    """Holds a value; whoever waits sees every change, though not every value in between."""

    _value: V
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def value(self) -> V:
        return self._value

    def set(self, value: V) -> None:
        """Replace the value and wake every waiter."""
        self._value = value
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_changed(self) -> V:
        """The value after the next `set`."""
        await self._changed.wait()
        return self._value
