"""`cortex up`: a neuron and a gateway on this machine, supervised."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs
import click
import trio

from cortex.cli.exits import Misconfigured
from cortex.cli.log_options import Levels, log_level_option
from cortex.cli.readiness import Endpoints, NotReady, until_ready
from cortex.cli.roles import configured, require_torch
from cortex.cli.runner import own_command
from cortex.cli.supervisor import Child, Start, supervise
from cortex.config.loader import load_gateway, load_neuron
from cortex.config.neuron import DefaultModel
from cortex.config.values import join_listen
from cortex.service.serve import listen

F = TypeVar("F", bound=Callable[..., Any])

DEMO = "cortex/demo"
LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 31313
QUESTION = "Which roles does cortex have?"  # the demonstration model knows the answer


@attrs.frozen
class Addresses:
    """Where the two listen: hosts and ports, every one free a moment ago."""

    host: str
    port: int
    neuron_port: int
    metrics_port: int
    secure: bool = False  # the gateway has a certificate

    @property
    def gateway(self) -> str:
        """The gateway's base URL for clients on this machine."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        return f"http{'s' if self.secure else ''}://{join_listen(host, self.port)}"

    @property
    def neuron(self) -> str:
        return f"http://{LOOPBACK}:{self.neuron_port}"

    @property
    def metrics(self) -> str:
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"


def _port_option(flag: str, default: int, what: str) -> Callable[[F], F]:
    return click.option(
        flag,
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help=f"Port of {what}; 0 picks a free one.",
    )


@click.command()
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    default=(DEMO,),
    metavar="MODEL",
    help="A folder, a GGUF file, a Hugging Face id, or cortex/demo, the demonstration model, which "
    "is served when none is given. Repeatable.",
)
@click.option(
    "--host",
    default=LOOPBACK,
    show_default=True,
    help="Host the API is bound to; one that others reach needs API keys (cortex keys).",
)
@_port_option("--port", DEFAULT_PORT, "the API")
@_port_option("--neuron-port", 13131, "the neuron")
@_port_option("--metrics-port", 31314, "the gateway's metrics")
@log_level_option("CORTEX_LOG_LEVEL", default="warning")
def up(
    models: tuple[str, ...],
    host: str,
    port: int,
    neuron_port: int,
    metrics_port: int,
    log_level: Levels,
) -> None:
    """Start a neuron and a gateway here and serve a model.

    Configuration files named by NEURON_CONFIG and CORTEX_CONFIG, and the environment, hold for the
    two; models, ports and the list of neurons are this command's. The neuron's token is
    NEURON_TOKEN, so that others can ask it too, else one that nobody else knows.
    """
    models = tuple(dict.fromkeys(models))
    named = configured(lambda: tuple(DefaultModel.named(name) for name in models))
    require_torch()
    addresses = Addresses(
        host,
        free_port(host, port, "--port"),
        free_port(LOOPBACK, neuron_port, "--neuron-port"),
        free_port(LOOPBACK, metrics_port, "--metrics-port"),
    )
    if len({addresses.port, addresses.neuron_port, addresses.metrics_port}) < 3:
        raise Misconfigured("--port, --neuron-port and --metrics-port must differ")
    token = own_token(os.environ)
    gateway, neuron = children(addresses, models, token, log_level.text)
    settings = configured(lambda: load_gateway(None, gateway.environ)).gateway
    addresses = attrs.evolve(addresses, secure=settings.tls_certificate is not None)
    endpoints = Endpoints(addresses.gateway, addresses.neuron, token)
    ids = tuple(model.model_id for model in named)

    async def begin(start: Start) -> bool:
        await start(neuron)
        return await announce(endpoints, addresses, ids, partial(start, gateway))

    sys.exit(trio.run(supervise, begin))


def own_token(environ: Mapping[str, str]) -> str:
    """What the two know each other by."""
    return environ.get("NEURON_TOKEN") or secrets.token_urlsafe(32)


def free_port(host: str, port: int, flag: str) -> int:
    """*port*, or one that the system picks for 0; `Misconfigured` when it is taken."""
    try:
        with listen(join_listen(host, port)) as probe:
            found: int = probe.getsockname()[1]
            return found
    except OSError as exc:
        reason = (exc.strerror or str(exc)).partition(" (while")[0]
        raise Misconfigured(
            f"cannot listen on {join_listen(host, port)}: {reason} ({flag} moves it)"
        ) from None


def children(
    addresses: Addresses, models: tuple[str, ...], token: str, log_level: str
) -> tuple[Child, Child]:
    """The gateway and the neuron."""
    environ = {k: v for k, v in os.environ.items() if k != "NEURON_TOKEN_FILE"}
    environ["CORTEX_NEURONS"] = f"local={addresses.neuron}"
    environ["CORTEX_NEURON_TOKEN"] = environ["NEURON_TOKEN"] = token
    level = ("--log-level", log_level)
    metrics_listen = join_listen(LOOPBACK, addresses.metrics_port)
    gateway = (
        *own_command(),
        "gateway",
        *("--listen", join_listen(addresses.host, addresses.port)),
        *("--metrics-listen", metrics_listen),
        *level,
    )
    neuron = [*own_command(), "neuron", "--listen", f"{LOOPBACK}:{addresses.neuron_port}", *level]
    for model in models:
        neuron += ["--model", model]
    gateway_config = configured(lambda: load_gateway(None, environ))
    neuron_config = configured(lambda: load_neuron(None, environ))
    return (
        Child("gateway", gateway, environ, gateway_config.gateway.drain_seconds),
        Child("neuron", neuron, environ, neuron_config.drain_seconds),
    )


async def announce(
    endpoints: Endpoints,
    addresses: Addresses,
    models: tuple[str, ...],
    start_gateway: Callable[[], Awaitable[None]],
) -> bool:
    """Wait until the models are served and say how to reach them; False when they never will be."""
    try:
        ready = await until_ready(endpoints, models, start_gateway)
    except NotReady as exc:
        click.echo(f"cortex up: {exc}", err=True)
        return False
    click.echo(welcome(addresses, ready))
    return True


def _this_program() -> str:
    """How a person starts us: from a checkout (`cortex.py` says so), as a zipapp, or installed."""
    told = os.environ.get("CORTEX_COMMAND")
    if told:
        return told
    return sys.argv[0] if sys.argv[0].endswith(".pyz") else "cortex"


def welcome(addresses: Addresses, models: tuple[str, ...]) -> str:
    """What is printed once everything runs: addresses, and lines to paste."""
    base, model = addresses.gateway, models[0]
    messages = f'[{{"role": "user", "content": "{QUESTION}"}}]'
    ask = f'model="{model}", messages={messages}'
    body = f'{{"model": "{model}", "messages": {messages}}}'
    variables = {
        "ANTHROPIC_BASE_URL": base,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    claude = " ".join(f"{name}={value}" for name, value in variables.items())
    chat = f"{_this_program()} chat"
    if addresses.port != DEFAULT_PORT:
        chat += f" --endpoint {base}"
    return f"""\
cortex is up and serves {", ".join(models)}

  OpenAI      {base}/v1
  Anthropic   {base}
  metrics     {addresses.metrics}

A chat in another terminal:
  {chat}

curl:
  curl {base}/v1/chat/completions -H 'content-type: application/json' -d '{body}'

OpenAI's SDK:
  python3 -c 'from openai import OpenAI; print(OpenAI(base_url="{base}/v1", api_key="none")\
.chat.completions.create({ask}).choices[0].message.content)'

Anthropic's SDK:
  python3 -c 'from anthropic import Anthropic; print(Anthropic(base_url="{base}", api_key="none")\
.messages.create(max_tokens=256, {ask}).content[0].text)'

Claude Code:
  {claude} claude

Ctrl-C drains and stops."""
