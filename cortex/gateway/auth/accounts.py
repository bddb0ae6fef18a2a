"""Callers and what they use: the one object that the request core and the edge know of all this."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
from prometheus_client import CollectorRegistry

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.errors import Forbidden, clip
from cortex.gateway.auth import database, usage
from cortex.gateway.auth.caller import Caller
from cortex.gateway.auth.guard import Guard
from cortex.gateway.auth.keyring import KeyRing
from cortex.gateway.auth.keys import KeyStore
from cortex.gateway.auth.ledger import Ledger, LedgerMetrics
from cortex.gateway.auth.limiter import Allowance, Limiter, nothing_spent
from cortex.gateway.auth.strangers import Strangers
from cortex.service import logs

# Who reads in write-ahead mode waits for nobody, but for a moment after somebody has crashed. The
# event loop waits with it.
READ_BUSY_MS = 100

log = logs.get("gateway.auth")


@attrs.define(eq=False)
class Charge:
    """What one request is charged with: open from its admission until `settle`."""

    accounts: Accounts
    caller: Caller
    _allowance: Allowance | None = None
    _held: int = 0

    def admit(self, body: dict[str, Any]) -> None:
        """Hold the caller to its limits. `RateLimited` when they do not allow this request."""
        allowance = self.accounts.limiter.of(self.caller.key_id or usage.NO_KEY)
        if allowance is not None:
            self._held = self.accounts.limiter.admit(allowance, body)
            self._allowance = allowance

    def settle(self, entry: usage.Entry, *, asked: bool) -> None:
        """The request has ended, or is just about to; *asked*: a node was sent it.

        A client that leaves before its prompt has been counted may have had all of it computed: to
        its limits, though not in the ledger, the prompt is then as long as was estimated.
        """
        if self._allowance is not None:
            used = entry.prompt + entry.completion
            if asked and entry.code == usage.CLIENT_GONE and not entry.prompt:
                used += self._held
            self.accounts.limiter.settle(self._allowance, self._held, used)
            self._allowance = None
        if self.accounts.ledger is not None:
            self.accounts.ledger.record(entry)


@attrs.frozen(eq=False)
class Accounts:
    """Keys, limits and the ledger. Without a ledger nothing is kept beyond the process."""

    ring: KeyRing = attrs.field(factory=KeyRing)
    limiter: Limiter = attrs.field(factory=Limiter)
    strangers: Strangers = attrs.field(factory=Strangers)
    ledger: Ledger | None = None

    def guard(self, listen: str, refused: Callable[[str], None]) -> Guard:
        """The guard of the API that is bound to *listen*; *refused* gets the code of each refusal,
        to be counted."""
        return Guard(self.ring, self.strangers, listen, refused)

    def charge(self, caller: Caller | None) -> Charge:
        return Charge(self, caller or self.strangers.caller)

    def refresh(self) -> None:
        """Hold everybody to the limits of the keys in force."""
        limits = {key.id: key.limits for key in self.ring.keys}
        self.limiter.configure({**limits, usage.NO_KEY: self.strangers.limits})

    def retune(self, auth: AuthSettings, kept: UsageSettings) -> None:
        """From here on these settings hold."""
        self.strangers.retune(auth)
        self.refresh()
        if self.ledger is not None:
            self.ledger.log_days = _log_days(kept)

    async def run(self) -> None:
        """Follow the database and write the ledger, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.ring.stored:
                nursery.start_soon(self.ring.run, self.refresh, name="keys")
            if self.ledger is not None:
                nursery.start_soon(self.ledger.run, name="usage ledger")


@contextmanager
def open_accounts(
    directory: Path | None,
    auth: AuthSettings,
    kept: UsageSettings,
    registry: CollectorRegistry,
    clock: Callable[[], float] = time.time,
) -> Iterator[Accounts]:
    """The accounts in *directory*; without one there are no keys, and usage is not kept.

    `DatabaseError` when there is a database that cannot be used: who may do what is not known then.
    A directory that cannot be made is a warning, since there can be no keys in it.
    """
    with ExitStack() as stack:
        store, ledger = None, None
        connection = _connect(directory)
        if connection is not None and directory is not None:
            stack.callback(connection.close)
            connection.execute(f"PRAGMA busy_timeout = {READ_BUSY_MS}")
            store = KeyStore(connection, clock)
            ledger = _open_ledger(stack, directory, kept, registry, clock)
        spent = nothing_spent if connection is None else partial(usage.tokens_since, connection)
        try:
            ring = KeyRing(store, clock)
        except (sqlite3.Error, ValueError) as exc:
            place = directory and directory / database.NAME
            raise database.DatabaseError(f"{place}: the keys in it cannot be read: {exc}") from exc
        accounts = Accounts(ring, Limiter(spent, wall=clock), ledger=ledger)
        accounts.retune(auth, kept)
        yield accounts


def has_keys(directory: Path) -> bool:
    """Whether there ever was a key in *directory*. `DatabaseError` when that cannot be read."""
    try:
        connection = database.connect_to_read(directory)
        if connection is None:
            return False
        with closing(connection):
            return bool(KeyStore(connection).all())
    except (sqlite3.Error, ValueError) as exc:
        raise database.DatabaseError(f"{directory / database.NAME}: {exc}") from exc


def permit(caller: Caller | None, requested: str, model: str) -> None:
    """`Forbidden` unless *caller* may use *model*, which it calls *requested*."""
    if caller is not None and not caller.may_use(requested, model):
        raise Forbidden(
            f"this API key may not use the model '{clip(requested)}'",
            code="model_not_allowed",
            param="model",
        )


def _connect(directory: Path | None) -> sqlite3.Connection | None:
    if directory is None:
        return None
    try:
        return database.connect(directory)
    except database.DatabaseError as exc:
        if database.exists(directory):
            raise
        log.warning("there can be no keys, and usage is not kept", reason=str(exc))
        return None


def _open_ledger(
    stack: ExitStack,
    directory: Path,
    kept: UsageSettings,
    registry: CollectorRegistry,
    clock: Callable[[], float],
) -> Ledger | None:
    days = _log_days(kept)
    ledger = Ledger(directory, database.connect(directory), LedgerMetrics(registry), days, clock)
    try:
        return stack.enter_context(ledger)
    except OSError as exc:
        log.error("usage is not kept", exc=exc)
        return None


def _log_days(kept: UsageSettings) -> int | None:
    return kept.request_log_days if kept.request_log else None
