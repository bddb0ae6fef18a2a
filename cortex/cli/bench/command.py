"""`cortex bench`: measure an endpoint; `cortex bench engine`: the engine alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import trio

from cortex.cli import tables
from cortex.cli.bench import record, report
from cortex.cli.bench.comparison import Compared, beyond, compare
from cortex.cli.bench.dialects import DIALECTS
from cortex.cli.bench.engine import engine
from cortex.cli.bench.option_types import Counts, Part
from cortex.cli.bench.plan import Amount, Cell, CellResult, Plan
from cortex.cli.bench.statistics import Objectives
from cortex.cli.chat import choose_model
from cortex.cli.client import gateway_options, open_client
from cortex.cli.exits import Failed, Misconfigured
from cortex.cli.fleet import print_json
from cortex.cli.runner import leaves

Json = dict[str, Any]
MAX_CONCURRENCY = 512  # connections to one endpoint
MILLISECONDS = click.FloatRange(0, min_open=True)


@click.group(invoke_without_command=True)
@gateway_options
@click.option("--model", "-m", help="The model; the one that is loaded if not given.")
@click.option(
    "--dialect",
    type=click.Choice(tuple(DIALECTS)),
    default="chat",
    show_default=True,
    help="OpenAI's chat or completions, or Anthropic's messages.",
)
@click.option("--stream/--no-stream", default=True, help="[default: stream]")
@click.option(
    "--concurrency",
    "-c",
    type=Counts(1, MAX_CONCURRENCY),
    default="1,8",
    show_default=True,
    help="Requests under way at a time.",
)
@click.option(
    "--prompt-tokens", type=Counts(1, 1 << 20), default="256", show_default=True, help="Of each."
)
@click.option(
    "--completion-tokens", type=Counts(1, 1 << 20), default="64", show_default=True, help="Of each."
)
@click.option("--requests", type=click.IntRange(1, 1_000_000), help="Of each repeat.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="That a repeat asks for.")
@click.option("--repeats", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--warm-up", type=click.IntRange(0, 10_000), help="Requests that do not count.")
@click.option(
    "--shared-prefix",
    type=click.IntRange(0, 1 << 20),
    default=0,
    metavar="TOKENS",
    help="Begin all prompts alike; no two do if not given.",
)
@click.option(
    "--ignore-eos/--no-ignore-eos",
    default=True,
    help="Ask OpenAI's dialects for the whole length.  [default: ignore-eos]",
)
@click.option("--ttft-slo", type=MILLISECONDS, metavar="MS", help="Count as good what keeps it.")
@click.option("--tpot-slo", type=MILLISECONDS, metavar="MS", help="Likewise.")
@click.option("--e2el-slo", type=MILLISECONDS, metavar="MS", help="Likewise.")
@click.option("--seed", type=click.IntRange(0), help="Of the prompts; a new one if not given.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86_400),
    default=600,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the run here.")
@click.option(
    "--compare",
    "compare_with",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With a run saved before.",
)
@click.option(
    "--fail-over", type=Part(), help="End with 1 if a figure got worse by more, beyond noise."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    endpoint: str,
    key: str | None,
    model: str | None,
    save: Path | None,
    compare_with: Path | None,
    fail_over: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure an endpoint's latency and throughput.

    Every combination of concurrency and lengths is measured, each repeated; a figure is the median
    of its repeats, with half of their range beside it. TTFT: to the first output; TPOT: each token
    after it; ITL: between two outputs; E2EL: to the end. Any endpoint of these dialects will do.
    """
    if ctx.invoked_subcommand is not None:
        return
    if fail_over is not None and compare_with is None:
        raise click.UsageError("--fail-over needs --compare")
    before = None if compare_with is None else record.read(compare_with)
    if save is not None:
        record.check_place(save)
    with open_client(endpoint, key) as client:
        model = model or choose_model(client.get("/v1/models").get("data") or [])
    if options["seed"] is None:
        options["seed"] = int.from_bytes(os.urandom(4), "big")
    key = key or os.environ.get("CORTEX_API_KEY")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise Misconfigured("--key: this can be no key")
    results = _measured(endpoint, key, model, options)
    told = record.record(_told(endpoint, model, options), results)
    compared = _compared(before, told)
    if save is not None:
        record.save(save, told)
    _show(told, results, compared, before, as_json=as_json)
    _judge(results, compared, fail_over)


bench.add_command(engine)


def _measured(endpoint: str, key: str | None, model: str, options: Json) -> Sequence[CellResult]:
    cells = [
        Cell(concurrency, prompt, completion)
        for prompt in options["prompt_tokens"]
        for completion in options["completion_tokens"]
        for concurrency in options["concurrency"]
    ]
    plan = Plan(
        cells,
        options["repeats"],
        Amount(options["requests"], options["seconds"]),
        options["warm_up"],
        options["shared_prefix"],
        options["seed"],
        Objectives(
            *(
                None if bound is None else bound / 1e3
                for bound in (options["ttft_slo"], options["tpot_slo"], options["e2el_slo"])
            )
        ),
    )

    async def main() -> Sequence[CellResult]:
        from cortex.cli.bench.load import Endpoint
        from cortex.cli.bench.run import run
        from cortex.gateway.upstream import PooledUpstream

        gc.collect()  # not in the middle of it
        async with PooledUpstream(options["timeout"]) as upstream:
            asked = Endpoint(
                upstream,
                endpoint,
                model,
                DIALECTS[options["dialect"]],
                key,
                options["stream"],
                options["ignore_eos"],
                options["timeout"],
            )
            return await run(asked, plan, lambda line: click.echo(f"cortex: {line}", err=True))

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        for leaf in leaves(group):
            if isinstance(leaf, KeyboardInterrupt | Failed):
                raise leaf from None
        raise


def _told(endpoint: str, model: str, options: Json) -> Json:
    kept = ("dialect", "stream", "shared_prefix", "ignore_eos", "requests", "seconds")
    return {"endpoint": endpoint, "model": model, **{name: options[name] for name in kept}}


def _compared(before: Json | None, now: Json) -> list[Compared] | None:
    if before is None:
        return None
    compared = compare(record.measured(before), record.measured(now))
    if not compared:
        names = ", ".join(str(cell.get("name")) for cell in before["cells"])
        raise Misconfigured(f"--compare: the runs have no cell in common; the saved one: {names}")
    return compared


def _show(
    told: Json,
    results: Sequence[CellResult],
    compared: Sequence[Compared] | None,
    before: Json | None,
    *,
    as_json: bool,
) -> None:
    differing = [] if before is None else record.differences(before, told)
    if as_json:
        if compared is not None:
            told = {**told, "compared": [_plain(each) for each in compared], "differs": differing}
        print_json(told)
        return
    screen = tables.console()
    screen.print(report.run_table(results))
    for line in report.remarks(results):
        click.echo(line)
    if compared is not None:
        screen.print()
        screen.print(report.comparison_table(compared))
        for line in differing:
            click.echo(f"not the same: {line}")


def _plain(each: Compared) -> Json:
    return {
        "cell": each.cell,
        "figure": each.figure,
        "ratio": round(each.ratio, 4),
        "verdict": each.verdict.value,
    }


def _judge(
    results: Sequence[CellResult], compared: Sequence[Compared] | None, fail_over: float | None
) -> None:
    """End with 1 where nothing came, or where it got worse by more than is allowed."""
    empty = report.failed_cells(results)
    if empty:
        raise Failed(f"no request was answered whole: {', '.join(empty)}")
    if fail_over is None or compared is None:
        return
    worse = beyond(list(compared), fail_over)
    if worse:
        names = ", ".join(
            f"{each.cell} {report.title_of(each.figure)} {each.loss:+.0%}" for each in worse
        )
        raise Failed(f"worse by more than {fail_over:.0%}: {names}")
