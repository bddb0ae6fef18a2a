"""`cortex pull`: a model's files, before it is needed; on this host, or on neurons."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio
from click.core import ParameterSource

from cortex.cli.client import GatewayClient, gateway_options, open_client
from cortex.cli.exits import FAILURE, OK, UNREACHABLE, USAGE, Misconfigured
from cortex.cli.fleet import json_option, print_json
from cortex.cli.node_pulls import EVERY, ORDER, NodePulls
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
@click.option(
    "--node",
    metavar="NAME",
    help="Have a neuron fetch them, by way of the gateway; `all` for every one that may load it.",
)
@click.option("--cancel", is_flag=True, help="Stop a neuron's pull; what came is kept.")
@gateway_options
@json_option
@click.pass_context
def pull(
    ctx: click.Context,
    /,
    model: str,
    quant: str | None,
    revision: str | None,
    verify: bool,
    config: Path | None,
    node: str | None,
    cancel: bool,
    endpoint: str,
    key: str | None,
    as_json: bool,
) -> None:
    """Fetch MODEL's files, so that loading it needs no network.

    MODEL is org/name on the hub, org/name@revision, or the id of a model in the neuron's
    configuration. They go into the cache that a neuron of this user on this host reads (--config or
    the environment say where that is); with --node into that neuron's, and MODEL is a name that the
    gateway knows or one as above.

    Ctrl-C keeps what came; the same command goes on from there, and so does a load. A neuron's pull
    goes on until --cancel. Ends with 3 when the hub, or the gateway, cannot be reached.
    """
    options = {"revision": revision, "quant": quant}
    if node is None:
        _only_with_node(ctx, "endpoint", "key", "cancel")
        _pull_here(model, options, config, verify=verify, as_json=as_json)
        return
    if config is not None:
        raise click.UsageError("--config is for this host's own cache: it does not go with --node")
    order = {"model": model, **({} if node == EVERY else {"node": node})}
    with open_client(endpoint, key) as client:
        if cancel:
            _cancel(client, order, as_json=as_json)
        else:
            given = {name: value for name, value in options.items() if value is not None}
            _pull_there(client, {**order, **given, "verify": verify}, as_json=as_json)


def _pull_here(
    model: str,
    options: dict[str, str | None],
    config: Path | None,
    *,
    verify: bool,
    as_json: bool,
) -> None:
    from cortex.config.loader import load_neuron

    logs.configure("warning")
    here = configured(lambda: load_neuron(config, os.environ))
    request = _request(model, options["quant"], options["revision"], verify, here)
    with open_view(as_json=as_json) as view:
        ended, error = trio.run(_pull, here, request, view)
    if not as_json:
        click.echo(outcome("", ended, verified=verify), err=ended.status != wire.PULLED)
    sys.exit(_code(ended, error))


def _only_with_node(ctx: click.Context, *names: str) -> None:
    for name in names:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} goes with --node")


def _cancel(client: GatewayClient, order: dict[str, Any], *, as_json: bool) -> None:
    answer = client.post(f"{ORDER}/cancel", order)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"stopped on {', '.join(answer.get('nodes') or [])}; what came is kept")


def _pull_there(client: GatewayClient, order: dict[str, Any], *, as_json: bool) -> None:
    with open_view(as_json=as_json) as view:
        ended = NodePulls(client, view).run(order)
    if not as_json:
        for node, pull in ended.items():
            click.echo(
                outcome(node, pull, verified=order["verify"]), err=pull.status != wire.PULLED
            )
    if any(pull.status != wire.PULLED for pull in ended.values()):
        sys.exit(FAILURE)


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
