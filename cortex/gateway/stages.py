"""Where a request's time goes, in stages that add up to its duration.

A request is in one stage at any time, so the sum is exact by construction:

    receive   its body arrives, is decoded and checked
    auth      its key is looked up and its limits are asked
    queue     it waits for a seat, in the gateway or at the neuron
    route     a replica is chosen, and those that refuse it are asked
    load      a load is waited for
    prefill   the neuron reads the prompt
    decode    the neuron writes the answer
    relay     what the neuron's own timings leave of the time it was asked for: the network, the
              answer's way to the client, and all of it where nothing tells more

The last three and the neuron's queue are what ``timings`` say; a neuron without timings has had its
prefill by its stream's first token, and decodes until the last.
"""

from __future__ import annotations

from math import inf

import attrs

from cortex.gateway.observed import Observed

RECEIVE, AUTH, QUEUE, ROUTE, LOAD = "receive", "auth", "queue", "route", "load"
PREFILL, DECODE, RELAY = "prefill", "decode", "relay"
_ASKED = "asked"  # a neuron was asked; divided at the end


@attrs.define(eq=False)
class StageClock:
    """Times are the clock's whose readings it is given, in seconds."""

    since: float  # when the present stage began
    stage: str = RECEIVE
    _spent: dict[str, float] = attrs.field(factory=dict, init=False)

    def enter(self, stage: str, now: float) -> None:
        spent = self._spent
        spent[self.stage] = spent.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now

    def asked(self, now: float) -> None:
        """A neuron is asked from now on."""
        self.enter(_ASKED, now)

    def refused(self, now: float) -> None:
        """It did not take the request: asking it was part of finding one that does."""
        self.enter(ROUTE, now)
        self.move(inf, _ASKED, ROUTE)
        self._spent.pop(_ASKED, None)

    def move(self, seconds: float, source: str, target: str) -> None:
        """Let *seconds* of what *source* has taken so far, or all there is, count for *target*."""
        spent = self._spent
        moved = min(seconds, spent.get(source, 0.0))
        if moved > 0:
            spent[source] -= moved
            spent[target] = spent.get(target, 0.0) + moved

    def end(
        self, now: float, observed: Observed, first: float | None, last: float | None
    ) -> dict[str, float]:
        """Seconds by stage. *first* and *last* are when the model's output passed, if it did."""
        began = self.since
        self.enter(RELAY, now)
        spent = self._spent
        if _ASKED not in spent:
            return spent
        if observed.timings is not None:
            for stage in (QUEUE, PREFILL, DECODE):
                told = observed.milliseconds(f"{stage}_ms")
                if told is not None:
                    self._tell(told / 1000, stage)
        elif first is not None and last is not None:
            self._tell(first - began, PREFILL)
            self._tell(last - first, DECODE)
        self.move(inf, _ASKED, RELAY)
        del spent[_ASKED]
        return spent

    def _tell(self, seconds: float, stage: str) -> None:
        self._spent.setdefault(stage, 0.0)  # a stage that took no time is shown all the same
        self.move(seconds, _ASKED, stage)
