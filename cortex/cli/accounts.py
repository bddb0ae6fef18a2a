"""`cortex keys` and `cortex usage`: who may use a gateway, and what they have used.

They work on the files in the gateway's state directory, on the gateway's machine, whether it runs
or not; one that runs follows within a second.
"""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from cortex.cli.exits import Failed, Misconfigured
from cortex.config.errors import ConfigError, Invalid
from cortex.config.loader import state_directory
from cortex.config.values import parse_duration

Json = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

state_option: Callable[[F], F] = click.option(
    "--state-directory",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the gateway keeps its state.  [default: $STATE_DIRECTORY, else "
    "$XDG_STATE_HOME/cortex]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def keys() -> None:
    """Manage the API keys of the gateway on this machine.

    Once there is a key, requests need one. A key belongs to a person or a program, and is shown
    once, when it is added.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["inference", "admin"]),
    help="What it is for: models, or the fleet's administration. Repeatable.  [default: inference]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="A model it may use: an id, an alias, or a pattern with * and ?. Repeatable; all models "
    "if not given.",
)
@click.option("--rpm", type=click.IntRange(1), metavar="N", help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(1), metavar="N", help="Tokens a minute.")
@click.option("--budget", type=click.IntRange(1), metavar="TOKENS", help="Tokens a --per.")
@click.option("--per", type=click.Choice(["day", "month"]), help="The period of the budget, UTC.")
@click.option(
    "--priority",
    type=click.Choice(["interactive", "normal", "batch"]),
    default="normal",
    show_default=True,
    help="Who waits for whom when there is a queue.",
)
@click.option(
    "--expires",
    metavar="WHEN",
    help='When it ends: a duration from now ("90d", "12h") or a date in UTC ("2027-01-31").',
)
@state_option
@json_option
def add(
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    budget: int | None,
    per: str | None,
    priority: str,
    expires: str | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it, this once."""
    from cortex.gateway.auth.keys import Key, KeyProblem, KeyStore

    try:
        asked = Key(
            id="",
            name=name,
            scopes=tuple(dict.fromkeys(scopes)) or ("inference",),
            models=tuple(dict.fromkeys(models)),
            priority=priority,
            rpm=rpm,
            tpm=tpm,
            budget=budget,
            period=per,
            expires=_moment(expires) if expires is not None else None,
        )
    except KeyProblem as problem:
        raise Misconfigured(str(problem)) from None
    with _database(directory) as connection:
        try:
            key, secret = KeyStore(connection).add(asked)
        except KeyProblem as problem:
            raise Failed(str(problem)) from None
    if as_json:
        _print_json({**_described(key), "key": secret})
        return
    click.echo(secret)
    click.echo(
        f"Key {key.id} ({key.name}). It is not shown again; revoke it by name or id.", err=True
    )


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Those that were revoked, too.")
@state_option
@json_option
def list_keys(everything: bool, directory: Path | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    from cortex.cli import tables
    from cortex.gateway.auth.keys import KeyStore

    with _database(directory, reading=True) as connection:
        found = KeyStore(connection).all() if connection is not None else []
    shown = [_described(key) for key in found if everything or key.revoked is None]
    if as_json:
        _print_json({"keys": shown})
    elif shown:
        tables.console().print(tables.keys_table(shown))
    else:
        click.echo("there are no keys")


@keys.command()
@click.argument("key", metavar="NAME|ID")
@state_option
@json_option
def revoke(key: str, directory: Path | None, as_json: bool) -> None:
    """Take a key's rights away, for good."""
    from cortex.gateway.auth.keys import KeyProblem, KeyStore

    with _database(directory, reading=True) as connection:
        if connection is None:
            raise Failed("there are no keys")
    with _database(directory) as connection:
        try:
            revoked = KeyStore(connection).revoke(key)
        except KeyProblem as problem:
            raise Failed(str(problem)) from None
    if as_json:
        _print_json(_described(revoked))
    else:
        click.echo(f"{revoked.name} ({revoked.id}) is revoked")


@click.command()
@click.option("--key", help="Of this key only: its name or id, or 'anonymous'.")
@click.option("--model", help="Of this model only.")
@click.option("--since", metavar="WHEN", help='From this day on: a date, or how long ago ("7d").')
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["day", "key", "model"]),
    help="What to sum up by. Repeatable.  [default: key and model]",
)
@state_option
@json_option
def usage(
    key: str | None,
    model: str | None,
    since: str | None,
    by: tuple[str, ...],
    directory: Path | None,
    as_json: bool,
) -> None:
    """Show what was used: requests, errors and tokens, by key and model.

    Days are UTC. A gateway that runs is at most a second or two ahead of what is shown.
    """
    from cortex.cli import tables
    from cortex.gateway.auth import report

    columns = tuple(dict.fromkeys(by)) or ("key", "model")
    with _database(directory, reading=True) as connection:
        rows = (
            report.usage(connection, columns, key=key, model=model, since=_day(since))
            if connection is not None
            else []
        )
    if as_json:
        _print_json({"usage": rows})
    elif rows:
        tables.console().print(tables.usage_table(columns, rows))
    else:
        click.echo("nothing was used")


@contextmanager
def _database(directory: Path | None, *, reading: bool = False) -> Iterator[Any]:
    """The accounts' database; None for *reading* where there is none. It is made otherwise."""
    from cortex.gateway.auth import database

    place = directory if directory is not None else state_directory(os.environ)
    try:
        connection = database.connect_to_read(place) if reading else database.connect(place)
    except ConfigError as error:
        raise Failed(str(error)) from None
    try:
        yield connection
    except sqlite3.Error as error:
        raise Failed(f"{place / database.NAME}: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def _described(key: Any) -> Json:
    """A key as JSON: what was not set is left out."""
    times = {name: getattr(key, name) for name in ("created", "expires", "revoked")}
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(time.time()),
        "scopes": list(key.scopes),
        "models": list(key.models),
        "priority": key.priority,
        **{
            name: getattr(key, name)
            for name in ("rpm", "tpm", "budget", "period")
            if getattr(key, name) is not None
        },
        **{name: _stamp(moment) for name, moment in times.items() if moment is not None},
    }


def _stamp(unix: float) -> str:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> float:
    """*text* as Unix seconds in the future."""
    at = _date(text)
    if at is None:
        at = time.time() + _ago(text)
    if at <= time.time():
        raise Misconfigured(f"--expires: {text!r} is over already")
    return at


def _day(text: str | None) -> str | None:
    """*text* as a day in UTC: a date, or a time before now."""
    if text is None:
        return None
    at = _date(text)
    return _stamp(time.time() - _ago(text) if at is None else at)[:10]


def _date(text: str) -> float | None:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def _ago(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except Invalid:
        seconds = -1.0
    if not 0 <= seconds < 100 * 366 * 86400:
        raise Misconfigured(f'expected a date or a duration like "90d", got {text!r}')
    return seconds


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
