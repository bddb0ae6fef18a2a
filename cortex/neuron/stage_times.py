"""How long each stage of something takes."""

from __future__ import annotations

from collections.abc import Callable

import attrs


@attrs.define(eq=False)
class StageTimes:
    """Seconds by stage, on *clock*. A stage that is entered again goes on."""

    _clock: Callable[[], float]
    seconds: dict[str, float] = attrs.field(factory=dict, init=False)
    _stage: str | None = attrs.field(default=None, init=False)
    _since: float = attrs.field(default=0.0, init=False)

    def enter(self, stage: str) -> None:
        """The stage before has ended, and *stage* has begun."""
        if stage != self._stage:
            self.end()
            self._stage, self._since = stage, self._clock()

    def end(self) -> None:
        """The stage under way, if any, has ended."""
        if self._stage is not None:
            spent = self._clock() - self._since
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
            self._stage = None
