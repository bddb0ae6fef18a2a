"""A run, and a comparison, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cortex.cli import tables
from cortex.cli.bench.comparison import Compared, Verdict
from cortex.cli.bench.plan import BUSY, CellResult
from cortex.cli.bench.statistics import PERCENTILES, Spread

_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red"}
_RATES = {
    "requests_s": "requests/s",
    "output_tokens_s": "output tok/s",
    "total_tokens_s": "total tok/s",
    "request_tokens_s_p50": "tok/s of a request, p50",
    "goodput_s": "good requests/s",
}
_COUNTS = {
    "requests": "requests a repeat",
    "errors": "errors",
    "prompt_tokens": "prompt tokens, mean",
    "cached_tokens": "of these cached",
    "completion_tokens": "completion tokens, mean",
}
_TIMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def title_of(figure: str) -> str:
    known = {**_RATES, **_COUNTS}.get(figure)
    if known is not None:
        return known
    name, _, part = figure.partition("_")
    return f"{_TIMES[name]} {part}, ms"


def run_table(results: Sequence[CellResult]) -> Table:
    """A column for each cell: the median of its repeats, and half of their range."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("")
    for result in results:
        drawn.add_column(result.cell.name, justify="right")
    spreads = [result.spreads for result in results]
    parts = ("mean", *(f"p{percent}" for percent in PERCENTILES))
    names = [*_COUNTS, *_RATES, *(f"{kind}_{part}" for kind in _TIMES for part in parts)]
    for name in names:
        if any(name in each for each in spreads):
            cells = (_shown(each.get(name), exact=name in _COUNTS) for each in spreads)
            drawn.add_row(title_of(name), *cells)
    drawn.add_row("CPU of this client", *(f"{result.cpu:.0%}" for result in results))
    return drawn


def _shown(spread: Spread | None, *, exact: bool) -> str:
    if spread is None:
        return tables.UNKNOWN
    told = number(spread.median)
    return told if exact or spread.least == spread.most else f"{told} ±{spread.noise:.0%}"


def number(value: float) -> str:
    """Three digits that matter, or all before the point."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def remarks(results: Sequence[CellResult]) -> list[str]:
    """What a reader of the figures has to know."""
    told: list[str] = []
    for result in results:
        if result.errors:
            kinds = ", ".join(f"{count} times {kind}" for kind, count in result.errors.items())
            told.append(f"{result.cell.name}: {kinds}")
        if result.cpu >= BUSY:
            told.append(
                f"{result.cell.name}: this client used {result.cpu:.0%} of a core; the figures"
                " may be its own"
            )
        wanted, got = result.cell.completion_tokens, result.spreads.get("completion_tokens")
        if got is not None and got.median < 0.95 * wanted:
            told.append(
                f"{result.cell.name}: answers ended after {number(got.median)} of {wanted} tokens"
            )
        if got is None and not _failed(result):
            told.append(f"{result.cell.name}: the endpoint does not tell its tokens")
    return told


def _failed(result: CellResult) -> bool:
    """Whether nothing came whole."""
    return all(each["errors"] == each["requests"] for each in result.repeats)


def failed_cells(results: Sequence[CellResult]) -> list[str]:
    return [result.cell.name for result in results if _failed(result)]


def comparison_table(compared: Sequence[Compared]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("")
    drawn.add_column("")
    for heading in ("BEFORE", "NOW", "RATIO"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("")
    last = ""
    for each in compared:
        drawn.add_row(
            each.cell if each.cell != last else "",
            title_of(each.figure),
            _shown(each.before, exact=False),
            _shown(each.now, exact=False),
            f"{each.ratio:.2f}",
            Text(each.verdict.value, _STYLES.get(each.verdict, "dim")),
        )
        last = each.cell
    return drawn
