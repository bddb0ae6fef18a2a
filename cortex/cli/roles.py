"""`cortex gateway` and `cortex neuron`: one role, this process."""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from cortex.cli.exits import Misconfigured
from cortex.cli.log_options import Levels, configure, log_format_option, log_level_option
from cortex.cli.runner import run_role, spare_collector
from cortex.config.errors import ConfigError, Invalid
from cortex.config.gateway import GatewayConfig
from cortex.config.values import is_loopback, join_listen, split_listen
from cortex.service import logs
from cortex.service.notify import Systemd

if TYPE_CHECKING:
    from cortex.config.catalogue import Catalogue
    from cortex.config.gateway import GatewayConfig

log = logs.get("cli")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

NO_TORCH = (
    "a neuron needs torch, which is not installed: pip install torch==2.13.0, "
    "or use the cpu or cuda flavour of cortex.pyz"
)
# A busy trio thread otherwise stretches an engine step tenfold (measured); the default is 5 ms.
SWITCH_INTERVAL = 1e-4
# After the drain: unloading (20 s), and as much again for a slow machine.
WEDGED_SECONDS = 40.0


def config_option(variable: str) -> Callable[[F], F]:
    return click.option(
        "--config",
        "-c",
        type=click.Path(path_type=Path),
        help=f"Configuration file.  [env: {variable}]",
    )


@click.command()
@config_option("CORTEX_CONFIG")
@click.option("--listen", metavar="HOST:PORT", help="Address of the API.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Address of /metrics.")
@log_level_option("CORTEX_LOG_LEVEL")
@log_format_option("CORTEX_LOG_FORMAT")
def gateway(
    config: Path | None,
    listen: str | None,
    metrics_listen: str | None,
    log_level: Levels,
    log_format: str,
) -> None:
    """Serve the API over a fleet of neurons.

    Without a configuration there is one neuron, at http://127.0.0.1:13131, so that gateway and
    neuron on one machine find each other.
    """
    from cortex.config.loader import state_directory

    loaded, catalogue = configured(lambda: _read_gateway(config, listen, metrics_listen))
    configure(log_level, log_format)
    for warning in (*loaded.warnings, *catalogue.warnings):
        log.warning(warning)
    state = state_directory(os.environ)
    _warn_of_strangers(loaded, state)
    from cortex.gateway import app
    from cortex.gateway.pins import Pins
    from cortex.gateway.reload_plan import Configuration

    def read_again() -> Configuration:
        try:
            return Configuration(*_read_gateway(config, listen, metrics_listen))
        except Invalid as invalid:  # a flag that does not go with what the file says now
            raise ConfigError(f"{invalid.path}: {invalid}") from None

    pins = configured(lambda: Pins(state))
    role = partial(
        app.run,
        loaded,
        catalogue,
        pins=pins,
        state_directory=state,
        read_again=read_again,
        systemd=_systemd(),
    )
    sys.exit(run_role("gateway", role, os.environ, on_started=spare_collector, hangups=True))


def _read_gateway(
    path: Path | None, listen: str | None, metrics_listen: str | None
) -> tuple[GatewayConfig, Catalogue]:
    """Files, environment and flags, as they are now. `ConfigError` or `Invalid`."""
    from cortex.config.loader import load_catalogue, load_gateway

    loaded = load_gateway(path, os.environ)
    settings = attrs.evolve(
        loaded.gateway,
        listen=listen or loaded.gateway.listen,
        metrics_listen=metrics_listen or loaded.gateway.metrics_listen,
    )
    loaded = attrs.evolve(loaded, gateway=settings)
    return loaded, load_catalogue(loaded)


@click.command()
@config_option("NEURON_CONFIG")
@click.option("--listen", metavar="HOST[:PORT]", help="Address of the neuron's API.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port of that address.")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="MODEL",
    help="Model to load at start: a folder, a GGUF file, a Hugging Face id, or cortex/demo. "
    "Repeatable; stands in for the configured default_models.",
)
@log_level_option("NEURON_LOG_LEVEL")
@log_format_option("NEURON_LOG_FORMAT")
def neuron(
    config: Path | None,
    listen: str | None,
    port: int | None,
    models: tuple[str, ...],
    log_level: Levels,
    log_format: str,
) -> None:
    """Serve this machine's models."""
    from cortex.config.loader import load_neuron

    loaded = configured(lambda: load_neuron(config, os.environ))
    loaded = configured(
        lambda: attrs.evolve(
            loaded,
            listen=_address(loaded.listen, listen, port),
            default_models=_models(models) or loaded.default_models,
        )
    )
    require_torch()
    configure(log_level, log_format)
    for warning in loaded.warnings:
        log.warning(warning)
    if not is_loopback(loaded.listen) and loaded.token is None:
        log.warning(
            "there is no token: everyone who reaches this neuron may use it", listen=loaded.listen
        )
    sys.setswitchinterval(SWITCH_INTERVAL)
    # torch's OpenMP threads wait for each other by spinning, which starves the thread that serves
    # HTTP: with two threads on two cores eight streams had 110 tok/s, and 793 when waiting sleeps
    # (the demonstration model, gateway and client beside it). Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cortex.neuron import app
    from cortex.neuron.restart import arm_watchdog

    # A device thread may be stuck in its driver for ever; the process must end all the same.
    hard_exit = partial(arm_watchdog, loaded.drain_seconds + WEDGED_SECONDS)
    role = partial(app.run, loaded, systemd=_systemd())
    sys.exit(run_role("neuron", role, os.environ, hard_exit))


def _systemd() -> Systemd:
    """Who started this process. One that its watchdog aborts says where it was."""
    found = Systemd.of(os.environ)
    if found.watchdog is not None:
        faulthandler.enable()
    return found


def _warn_of_strangers(config: GatewayConfig, state: Path) -> None:
    """Say who may use an API that others can reach. Ends the command when the keys in the state
    directory cannot be read."""
    from cortex.gateway.auth.accounts import has_keys

    listen, anonymous = config.gateway.listen, config.auth.anonymous
    keyed = configured(lambda: has_keys(state))
    if is_loopback(listen):
        return
    if anonymous:
        log.warning("no key is needed: everyone who reaches the API may use it", listen=listen)
    elif not keyed:
        log.warning(
            "the API has no keys, and serves nobody until it has: 'cortex keys add NAME' makes "
            "one; 'anonymous = true' in [auth] opens it to everyone who reaches it",
            listen=listen,
        )


def configured(build: Callable[[], T]) -> T:
    """What *build* gives; what is wrong with the configuration ends the command."""
    try:
        return build()
    except ConfigError as error:
        raise Misconfigured(str(error)) from None
    except Invalid as invalid:
        raise Misconfigured(
            f"{invalid.path}: {invalid}" if invalid.path else str(invalid)
        ) from None


def require_torch() -> None:
    """End the command when torch is not installed, without importing it."""
    if importlib.util.find_spec("torch") is None:
        raise Misconfigured(NO_TORCH)


def _address(current: str, listen: str | None, port: int | None) -> str:
    """*current* with the flags' host and port in place of its own."""
    current_host, current_port = split_listen(current)
    host, listed = split_listen(listen) if listen is not None else (current_host, None)
    if port is None:
        port = listed if listed is not None else current_port
    return join_listen(host, port or 0)


def _models(names: tuple[str, ...]) -> tuple[Any, ...]:
    from cortex.config.neuron import DefaultModel

    return tuple(DefaultModel.named(name) for name in names)
