"""`cortex pull`: a model's files, before it is needed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from cortex.cli.exits import FAILURE, OK, UNREACHABLE, USAGE, Misconfigured
from cortex.cli.fleet import json_option
from cortex.cli.pull_view import PullView, open_view, outcome
from cortex.cli.roles import config_option, configured
from cortex.errors import BadRequest, CortexError, SourceUnavailable
from cortex.service import logs
from cortex.wire import neuron as wire
from cortex.wire.converter import structure

if TYPE_CHECKING:
    from cortex.config.neuron import NeuronConfig

LOOK_SECONDS = 0.2  # between two looks at how far it is


@click.command()
@click.argument("model")
@click.option("--quant", help="Which GGUF file of the repository, as `Q4_K_M`.")
@click.option("--revision", help="A branch, tag or commit.  [default: main]")
@click.option("--verify", is_flag=True, help="Hash what is here again, and repair it.")
@config_option("NEURON_CONFIG")
@json_option
def pull(
    model: str,
    quant: str | None,
    revision: str | None,
    verify: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Fetch MODEL's files, so that loading it needs no network.

    MODEL is org/name on the hub, org/name@revision, or the id of a model in the neuron's
    configuration, into the cache of models that a neuron of this user on this host reads (--config
    or the environment say where that is).

    Ctrl-C keeps what came; the same command goes on from there, and so does a load. Ends with 3
    when the hub cannot be reached.
    """
    from cortex.config.loader import load_neuron

    logs.configure("warning")
    here = configured(lambda: load_neuron(config, os.environ))
    request = _request(model, quant, revision, verify, here)
    with open_view(as_json=as_json) as view:
        ended, error = trio.run(_pull, here, request, view)
    if not as_json:
        click.echo(outcome("", ended), err=ended.status != wire.PULLED)
    sys.exit(_code(ended, error))


def _request(
    model: str, quant: str | None, revision: str | None, verify: bool, here: NeuronConfig
) -> wire.PullRequest:
    known = {each.model_id: each for each in here.default_models}.get(model)
    source = model if known is None or known.source is None else known.source
    if known is not None:
        quant = quant or known.quant
    if revision is not None:
        source = f"{source.partition('@')[0]}@{revision}"
    fields = {"model_id": model, "source": source, "quant": quant, "verify": verify}
    try:
        return structure(fields, wire.PullRequest)
    except BadRequest as exc:
        raise Misconfigured(f"{exc.param}: {exc.message}" if exc.param else exc.message) from None


async def _pull(
    here: NeuronConfig, request: wire.PullRequest, view: PullView
) -> tuple[wire.Pull, CortexError | None]:
    """Pull into this host's cache, shown on *view*, until it ends or a signal stops it."""
    from cortex.neuron.pull_record import PullRecord
    from cortex.neuron.sources import Sources

    record = PullRecord(request)
    record.begin()
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, nursery.cancel_scope)
        nursery.start_soon(_show, record.state, view)
        try:
            pulled = await Sources.from_config(here).pull(
                request.source,
                request.model_id,
                progress=record.report,
                quant=request.quant,
                verify=request.verify,
            )
            record.succeed(pulled)
        except CortexError as exc:
            record.fail(exc)
        nursery.cancel_scope.cancel("the pull has ended")
    if record.ended_at is None:
        record.cancel()
    view.show("", record.state())
    return record.state(), record.error


async def _show(state: Callable[[], wire.Pull], view: PullView) -> None:
    while True:
        view.show("", state())
        await trio.sleep(LOOK_SECONDS)


async def _stop_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel("a signal")
            return


def _code(ended: wire.Pull, error: CortexError | None) -> int:
    if ended.status == wire.PULLED:
        return OK
    if isinstance(error, BadRequest):
        return USAGE
    return UNREACHABLE if isinstance(error, SourceUnavailable) else FAILURE
