"""One whole benchmark: calibrate, warm up, and measure each cell as often as is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cortex.cli.bench.load import REFUSED, Endpoint, Window, calibrate, measure
from cortex.cli.bench.plan import Amount, Cell, CellResult, Plan, amount_for
from cortex.cli.bench.prompts import Length, Prompts
from cortex.cli.bench.statistics import Objectives, Sample, figures
from cortex.cli.exits import Failed, Unreachable


async def run(endpoint: Endpoint, plan: Plan, tell: Callable[[str], None]) -> Sequence[CellResult]:
    """All cells of *plan*, in order. `Failed` when the endpoint does not answer at
    all."""
    length = await _length(endpoint, plan, tell)
    results: list[CellResult] = []
    for number, cell in enumerate(plan.cells):
        words = length.words(cell.prompt_tokens)
        shared = min(words - 1, round(plan.shared_prefix / length.each))
        prompts = Prompts(plan.seed * 1_000_003 + number, shared)
        ask_next = partial(prompts.next, words)
        warm_up = cell.concurrency if plan.warm_up is None else plan.warm_up
        if warm_up:
            tell(f"{cell.name}: warming up")
            await measure(endpoint, cell, Amount(warm_up), ask_next)
        windows: list[Window] = []
        for repeat in range(plan.repeats):
            tell(f"{cell.name}: {repeat + 1} of {plan.repeats}")
            windows.append(await measure(endpoint, cell, amount_for(plan, cell), ask_next))
        results.append(_result(cell, windows, plan.objectives))
    return results


def _result(cell: Cell, windows: Sequence[Window], objectives: Objectives) -> CellResult:
    errors: dict[str, int] = {}
    samples: list[Sample] = [sample for window in windows for sample in window.samples]
    for sample in samples:
        if sample.error is not None:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    repeats = [figures(window.samples, window.seconds, objectives) for window in windows]
    return CellResult(cell, repeats, errors, max(window.cpu for window in windows))


async def _length(endpoint: Endpoint, plan: Plan, tell: Callable[[str], None]) -> Length:
    tell("finding out how prompts are counted")
    length, error = await calibrate(endpoint, Prompts(plan.seed - 1))
    if error == REFUSED:
        raise Unreachable(f"cannot reach {endpoint.url}: {error}")
    if error is not None:
        raise Failed(f"{endpoint.url} does not answer a first request: {error}")
    if length is None:
        tell("the endpoint does not tell how many tokens a prompt had: a word counts as one")
    return length or Length()
