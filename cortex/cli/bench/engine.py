"""`cortex bench engine`: how fast the engine is here, with nobody asking."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from cortex.cli.exits import Misconfigured


@click.command()
@click.option("--shape", help="A model's shape; see the end of this page.")
@click.option("--device", help="cpu, cuda or cuda:N; the first GPU where there is one.")
@click.option("--dtype", type=click.Choice(("bfloat16", "float32")), help="Computed in.")
@click.option(
    "--workload",
    type=click.Choice(("latency", "throughput", "all")),
    default="all",
    show_default=True,
    help="Steps of each batch size, many requests at once, or both.",
)
@click.option("--requests", type=click.IntRange(1, 4096), help="Of the throughput workload.")
@click.option("--context", type=click.IntRange(16, 1 << 20), help="Tokens, in the latency table.")
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1, 1024), help="May be repeated."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="On a CPU; all cores if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def engine(
    shape: str | None,
    device: str | None,
    dtype: str | None,
    workload: str,
    requests: int | None,
    context: int | None,
    batches: tuple[int, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the engine alone, on random weights of a model's shape.

    Prints steps of decode, prompts, and a workload of many requests, each as a share of what this
    device's own bandwidth and matrix rate allow, which are measured first. Nothing else should run
    on the device meanwhile. Shapes: qwen3-29m, qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b,
    qwen3-14b, qwen3-32b.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch makes its threads
    from cortex.neuron import engine_bench

    try:
        name = engine_bench.device_name(device)
        if shape is not None and shape not in engine_bench.SHAPE_NAMES:
            raise ValueError(
                f"there is no shape '{shape}'; known: {', '.join(engine_bench.SHAPE_NAMES)}"
            )
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    options: dict[str, Any] = {
        key: value
        for key, value in (
            ("dtype", dtype),
            ("requests", requests),
            ("context", context),
            ("batches", batches or None),
            ("workloads", None if workload == "all" else (workload,)),
        )
        if value is not None
    }
    figures, lines = engine_bench.measure(
        shape or ("qwen3-8b" if name.startswith("cuda") else "qwen3-29m"),
        name,
        options,
        threads,
        lambda line: click.echo(f"cortex: {line}", err=True),
    )
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        for line in lines:
            click.echo(line)
