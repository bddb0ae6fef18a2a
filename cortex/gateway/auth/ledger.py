"""The usage ledger: requests into a journal as they end, from there into the database.

The journal is the queue between the two, so that nothing waits in memory: a locked or broken
database makes the journal longer, and what is in it is taken up when the database is back.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import attrs
import trio
from prometheus_client import CollectorRegistry, Counter

from cortex.gateway.auth import usage
from cortex.gateway.auth.journal import Journal
from cortex.service import logs

FLUSH_SECONDS = 1.0
BATCH_BYTES = 1024 * 1024  # of the journal, in one transaction: some 8,000 requests
ROTATE_BYTES = 4 * 1024 * 1024
MAX_PENDING = 10_000  # entries held in memory while the journal cannot be written
RETENTION_CHECK_SECONDS = 3600.0
DAY_SECONDS = 86400

log = logs.get("gateway.usage")


class LedgerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.failures = Counter(
            "cortex_usage_write_failures",
            "Writes of usage that failed, by what was written; they are tried again.",
            ("place",),
            registry=registry,
        )
        for place in ("journal", "database"):
            self.failures.labels(place)
        self.lost = Counter(
            "cortex_usage_lost_requests",
            "Requests whose usage could not be kept.",
            registry=registry,
        )


@attrs.define(eq=False)
class Ledger:
    """Owns the journal and the connection through which it is applied. Use as a context manager;
    leaving it writes what is left.

    ``log_days`` is how long a row a request is kept; None keeps none at all.
    """

    directory: Path
    connection: sqlite3.Connection
    metrics: LedgerMetrics
    log_days: int | None = None
    clock: Callable[[], float] = time.time
    _journals: list[Journal] = attrs.field(factory=list, init=False)  # the last is written to
    _pending: deque[bytes] = attrs.field(factory=deque, init=False)
    _trouble: set[str] = attrs.field(factory=set, init=False)
    _swept: float = attrs.field(default=float("-inf"), init=False)

    def __enter__(self) -> Ledger:
        """Take up what was left behind, or leave it to a later start when the database does not
        allow it now. OSError when there can be no journal."""
        try:
            self._take_up()
        except (OSError, sqlite3.Error) as exc:
            self._failed("database", exc)
            self._let_go()
        try:
            self._journals.append(Journal.create(self.directory))
            self._retire()
        except BaseException:
            self._let_go()
            self.connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._write_pending()
        self.metrics.lost.inc(len(self._pending))
        self.flush()
        last = self._journals[-1]
        if last.applied >= last.size:
            self._remove(self._journals.pop())
        self._let_go()
        self.connection.close()

    def record(self, entry: usage.Entry) -> None:
        """Keep *entry*; once this returns it outlives the process. Never raises for want of
        space: then it waits in memory."""
        line = entry.line()
        try:
            self._journals[-1].append(line)
        except OSError as exc:
            self._failed("journal", exc)
            if len(self._pending) >= MAX_PENDING:
                self.metrics.lost.inc()
            else:
                self._pending.append(line)

    async def run(self) -> NoReturn:
        """Apply the journal every second until cancelled."""
        while True:
            await trio.sleep(FLUSH_SECONDS)
            self._write_pending()
            self._rotate()
            due = self.clock() - self._swept >= RETENTION_CHECK_SECONDS
            if due or any(journal.applied < journal.size for journal in self._journals):
                with trio.CancelScope(shield=True):  # it ends within the database's busy timeout
                    await trio.to_thread.run_sync(self.flush)

    def flush(self) -> None:
        """Bring the database up to date. What fails is logged, counted and tried again later."""
        try:
            self._apply()
            self._retire()
            self._sweep()
        except (sqlite3.Error, OSError) as exc:
            self._failed("database", exc)
        else:
            self._trouble.discard("database")

    def _apply(self) -> None:
        for journal in self._journals:
            while journal.applied < journal.size:
                lines, end = journal.lines(BATCH_BYTES)
                entries = [entry for entry in map(usage.parse, lines) if entry is not None]
                self._commit(journal.name, end, entries)
                journal.applied = end

    def _commit(self, journal: str, applied: int, entries: list[usage.Entry]) -> None:
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            self.connection.executemany(_ADD, _rows(entries))
            if self.log_days is not None:
                self.connection.executemany(_LOG, (attrs.astuple(entry) for entry in entries))
            execute("INSERT OR REPLACE INTO journals VALUES (?, ?)", (journal, applied))
            execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                execute("ROLLBACK")
            raise

    def _applied(self, name: str) -> int:
        row = self.connection.execute(
            "SELECT applied FROM journals WHERE name = ?", (name,)
        ).fetchone()
        return row[0] if row else 0

    def _sweep(self) -> None:
        """Drop the rows of requests that are older than they are to be."""
        now = self.clock()
        if now - self._swept < RETENTION_CHECK_SECONDS:
            return
        self._swept = now
        if self.log_days is not None:
            self.connection.execute(
                "DELETE FROM requests WHERE time < ?", (now - self.log_days * DAY_SECONDS,)
            )

    def _rotate(self) -> None:
        """Begin a new journal where the last one is long; that goes when all of it is applied."""
        if self._journals[-1].size < ROTATE_BYTES:
            return
        try:
            self._journals.append(Journal.create(self.directory))
        except OSError as exc:
            self._failed("journal", exc)

    def _retire(self) -> None:
        """Remove the journals that are in the database, the one that is written to excepted."""
        for journal in self._journals[:-1]:
            if journal.applied >= journal.size:
                self._journals.remove(journal)
                self._remove(journal)

    def _take_up(self) -> None:
        for orphan in Journal.orphans(self.directory):
            self._journals.append(orphan)
            orphan.applied = self._applied(orphan.name)
        self._apply()

    def _let_go(self) -> None:
        """Close the journals; whoever starts next takes up what they hold."""
        for journal in self._journals:
            journal.close()
        self._journals.clear()

    def _remove(self, journal: Journal) -> None:
        """First the file, then the note how much of it was applied: the other way round a crash
        in between would count it twice."""
        try:
            journal.remove()
            self.connection.execute("DELETE FROM journals WHERE name = ?", (journal.name,))
        except (OSError, sqlite3.Error) as exc:
            self._failed("journal", exc)

    def _write_pending(self) -> None:
        while self._pending:
            try:
                self._journals[-1].append(self._pending[0])
            except OSError as exc:
                self._failed("journal", exc)
                return
            self._pending.popleft()
        self._trouble.discard("journal")

    def _failed(self, place: str, exc: Exception) -> None:
        """Count it; log the first of a row of failures."""
        self.metrics.failures.labels(place).inc()
        if place not in self._trouble:
            self._trouble.add(place)
            log.error("usage cannot be written; requests are served all the same", exc=exc)


_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key, model, day) DO UPDATE SET
    requests = requests + excluded.requests, errors = errors + excluded.errors,
    prompt = prompt + excluded.prompt, cached = cached + excluded.cached,
    completion = completion + excluded.completion
"""
_LOG = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _rows(entries: Iterable[usage.Entry]) -> Iterable[tuple[object, ...]]:
    for place, sums in usage.summed(entries).items():
        key, model, day = place
        yield (key, model, day, *attrs.astuple(sums))
