"""From samples to figures. Pure; the definitions are those that benchmarks of inference share.

Of a request: TTFT is from sending it to the first output, E2EL to the end of the answer, TPOT the
time from the first output to the end for each completion token after the first, ITL each gap
between two outputs (a frame may hold several tokens). Throughput is what came whole in the time
from the first request to the last answer. Milliseconds, unless a name ends in ``_s`` (a second).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

PERCENTILES = (50, 90, 99)
Figures = dict[str, float]


@attrs.frozen
class Sample:
    """One request, on a monotonic clock in seconds. ``first`` and ``gaps`` are a stream's.
    ``error`` says in a few words why there is no whole answer."""

    started: float
    ended: float
    first: float | None = None
    gaps: Sequence[float] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        return None if self.first is None else self.first - self.started

    @property
    def e2el(self) -> float:
        return self.ended - self.started

    @property
    def tpot(self) -> float | None:
        if self.first is None or self.completion_tokens is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first) / (self.completion_tokens - 1)

    @property
    def speed(self) -> float | None:
        """Completion tokens a second, as this request saw it."""
        if not self.completion_tokens or self.e2el <= 0:
            return None
        return self.completion_tokens / self.e2el


@attrs.frozen
class Objectives:
    """Seconds that a request may take at most to count as good; None asks nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @property
    def any(self) -> bool:
        return any(bound is not None for bound in attrs.astuple(self))

    def met(self, sample: Sample) -> bool:
        pairs = ((self.ttft, sample.ttft), (self.tpot, sample.tpot), (self.e2el, sample.e2el))
        return sample.error is None and all(
            bound is None or (value is None or value <= bound) for bound, value in pairs
        )


@attrs.frozen
class Spread:
    """A figure over the repeats of one measurement."""

    median: float
    least: float
    most: float

    @property
    def noise(self) -> float:
        """Half of the range, as a part of the median."""
        return (self.most - self.least) / 2 / self.median if self.median else 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, between two of them by distance; NaN of none."""
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def figures(
    samples: Sequence[Sample], seconds: float, objectives: Objectives | None = None
) -> Figures:
    """What *samples*, all that were asked within *seconds*, come to. A figure that nothing tells of
    is left out."""
    whole = [sample for sample in samples if sample.error is None]
    found: Figures = {"requests": len(samples), "errors": len(samples) - len(whole)}
    if seconds > 0:
        written = sum(sample.completion_tokens or 0 for sample in whole)
        read = sum(sample.prompt_tokens or 0 for sample in whole)
        found["requests_s"] = len(whole) / seconds
        if written:
            found["output_tokens_s"] = written / seconds
            found["total_tokens_s"] = (written + read) / seconds
        if objectives is not None and objectives.any:
            found["goodput_s"] = sum(map(objectives.met, samples)) / seconds
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        told = [value for each in whole if (value := getattr(each, name)) is not None]
        if told:
            found[name] = sum(told) / len(told)
    speeds = sorted(speed for each in whole if (speed := each.speed) is not None)
    if speeds:
        found["request_tokens_s_p50"] = percentile(speeds, 50)
    found |= _distribution("ttft", [v for each in whole if (v := each.ttft) is not None])
    found |= _distribution("tpot", [v for each in whole if (v := each.tpot) is not None])
    found |= _distribution("itl", [gap for each in whole for gap in each.gaps])
    found |= _distribution("e2el", [each.e2el for each in whole])
    return found


def _distribution(name: str, seconds: Sequence[float]) -> Figures:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    told = {f"{name}_mean": 1e3 * sum(ordered) / len(ordered)}
    return told | {f"{name}_p{p}": 1e3 * percentile(ordered, p) for p in PERCENTILES}


def spreads(repeats: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Each figure that all of *repeats* have."""
    if not repeats:
        return {}
    names = [name for name in repeats[0] if all(name in each for each in repeats)]
    found: dict[str, Spread] = {}
    for name in names:
        ordered = sorted(each[name] for each in repeats)
        found[name] = Spread(percentile(ordered, 50), ordered[0], ordered[-1])
    return found
