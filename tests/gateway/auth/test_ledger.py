"""The ledger against the slow, obvious one: adding up what was recorded."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import trio
from fakes.accounts import add_key
from prometheus_client import CollectorRegistry

from cortex.gateway.auth import database, journal, ledger, usage
from cortex.gateway.auth.ledger import Ledger, LedgerMetrics
from cortex.gateway.auth.usage import Entry

ROOT = Path(__file__).parents[3]
TIME = 1795737600.0  # 2026-11-27, midnight in UTC


def entry(number: int = 0, **fields) -> Entry:
    values = Entry(TIME + number, "k", "m", "a", "openai-chat", 200, 10, 4, 2, 0.5, 1.0)
    return attrs.evolve(values, **fields)


def open_ledger(directory: Path, **fields) -> Ledger:
    fields.setdefault("clock", lambda: TIME)
    metrics = LedgerMetrics(fields.pop("registry", CollectorRegistry()))
    return Ledger(directory, database.connect(directory), metrics, **fields)


def sums(directory: Path) -> dict[tuple[str, str, str], tuple[int, ...]]:
    with closing(database.connect(directory)) as connection:
        rows = connection.execute("SELECT * FROM usage").fetchall()
        return {row[:3]: row[3:] for row in rows}


def rows(directory: Path, table: str) -> list[tuple[object, ...]]:
    with closing(database.connect(directory)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def journals(directory: Path) -> list[Path]:
    return sorted(directory.glob(journal.PATTERN))


async def test_what_is_recorded_is_in_the_database_within_a_second(tmp_path, nursery):
    with open_ledger(tmp_path) as book:
        for number in range(3):
            book.record(entry(number))
        assert sums(tmp_path) == {}
        book.flush()
        assert sums(tmp_path) == {("k", "m", "2026-11-27"): (3, 0, 30, 12, 6)}
        book.record(entry(code=500, prompt=0, cached=0, completion=0))
        book.flush()
        book.flush()
        assert sums(tmp_path) == {("k", "m", "2026-11-27"): (4, 1, 30, 12, 6)}
    assert journals(tmp_path) == []
    assert rows(tmp_path, "journals") == []


async def test_the_writer_runs_every_second(tmp_path, autojump_clock, monkeypatch):
    flushed: list[float] = []
    with open_ledger(tmp_path) as book:
        book._swept = TIME
        monkeypatch.setattr(Ledger, "flush", lambda self: flushed.append(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(book.run)
            await trio.sleep(3.5)
            assert flushed == []  # there is nothing to write
            book.record(entry())
            await trio.sleep(1)
            while not flushed:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
    assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 1


async def test_leaving_writes_what_is_left(tmp_path):
    with open_ledger(tmp_path) as book:
        book.record(entry())
    assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 1


async def test_a_journal_left_behind_is_taken_up_once(tmp_path):
    left = journal.Journal.create(tmp_path)
    for number in range(5):
        left.append(entry(number).line())
    left.append(entry().line()[:20])  # the process was killed while it wrote
    left.close()
    for _ in range(2):
        with open_ledger(tmp_path):
            assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 5
        assert journals(tmp_path) == []


@pytest.mark.parametrize("crash", ["before the file goes", "before its note goes"])
async def test_a_crash_between_two_steps_counts_nothing_twice(tmp_path, monkeypatch, crash):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    target = (journal.Journal, "remove") if crash == "before the file goes" else None
    left = journal.Journal.create(tmp_path)
    left.append(entry().line())
    left.close()
    with monkeypatch.context() as patch:
        if target:
            patch.setattr(*target, die)
        else:
            patch.setattr(journal.Journal, "remove", _removing_then(die, journal.Journal.remove))
        with pytest.raises(Killed), open_ledger(tmp_path):
            pass
    with open_ledger(tmp_path):
        assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 1


def _removing_then(die, remove):
    def removing(self):
        remove(self)
        os.dup2(os.open(os.devnull, os.O_RDONLY), self.descriptor)  # closed again by the ledger
        die()

    return removing


KILLED = """
import os, signal, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from cortex.gateway.auth import database
from cortex.gateway.auth.ledger import Ledger, LedgerMetrics
from cortex.gateway.auth.usage import Entry
directory, flush_each = Path(sys.argv[1]), int(sys.argv[2])
with Ledger(directory, database.connect(directory), LedgerMetrics(CollectorRegistry())) as book:
    for number in range(int(sys.argv[3])):
        book.record(Entry(1795737600.0, "k", "m", "a", "d", 200, number, 0, 1, None, 1.0))
        if number % flush_each == flush_each - 1:
            book.flush()
    os.write(1, b"recorded")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("flush_each", [1000, 7])
def test_a_killed_process_loses_nothing_and_counts_nothing_twice(tmp_path, flush_each):
    count = 50
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(flush_each), str(count)],
            cwd=ROOT,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (ended.stdout, ended.returncode) == (b"recorded", -9), ended.stderr
    with open_ledger(tmp_path):
        pass
    (found,) = sums(tmp_path).values()
    assert found == (2 * count, 0, 2 * sum(range(count)), 0, 2 * count)
    assert journals(tmp_path) == []


async def test_two_gateways_write_to_one_database(tmp_path):
    with open_ledger(tmp_path) as one, open_ledger(tmp_path) as two:
        for book in (one, two, one):
            book.record(entry())
            book.flush()
    assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 3


async def test_a_long_journal_is_written_in_parts_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "BATCH_BYTES", 250)
    monkeypatch.setattr(ledger, "ROTATE_BYTES", 1000)
    with open_ledger(tmp_path) as book:
        for number in range(100):
            book.record(entry(number))
            if number % 10 == 9:
                book._rotate()
                book.flush()
            assert len(journals(tmp_path)) <= 2
        (only,) = journals(tmp_path)
        assert only.stat().st_size < 1100
    assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 100
    assert rows(tmp_path, "journals") == []


# Trouble


async def test_a_locked_database_delays_and_loses_nothing(tmp_path, caplog):
    registry = CollectorRegistry()
    with open_ledger(tmp_path, registry=registry) as book:
        book.connection.execute("PRAGMA busy_timeout = 0")
        with closing(database.connect(tmp_path)) as other:
            other.execute("BEGIN IMMEDIATE")
            book.record(entry())
            for _ in range(3):
                book.flush()
            other.execute("ROLLBACK")
        labels = {"place": "database"}
        assert registry.get_sample_value("cortex_usage_write_failures_total", labels) == 3
        assert sum("cannot be written" in each.message for each in caplog.records) == 1
        book.flush()
        assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 1


async def test_a_full_disk_delays_and_loses_nothing(tmp_path, monkeypatch, caplog):
    registry = CollectorRegistry()
    with open_ledger(tmp_path, registry=registry) as book:
        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "append", _no_space)
            for number in range(3):
                book.record(entry(number))
        assert (
            registry.get_sample_value("cortex_usage_write_failures_total", {"place": "journal"})
            == 3
        )
        assert sum("cannot be written" in each.message for each in caplog.records) == 1
        book._write_pending()
        book.flush()
        assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 3
        assert registry.get_sample_value("cortex_usage_lost_requests_total") == 0


def _no_space(self, line):
    raise OSError(28, "No space left on device")


async def test_what_can_be_kept_nowhere_is_counted_as_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "MAX_PENDING", 2)
    registry = CollectorRegistry()
    with open_ledger(tmp_path, registry=registry) as book:
        monkeypatch.setattr(journal.Journal, "append", _no_space)
        for number in range(5):
            book.record(entry(number))
        assert registry.get_sample_value("cortex_usage_lost_requests_total") == 3
    assert registry.get_sample_value("cortex_usage_lost_requests_total") == 5
    assert sums(tmp_path) == {}


async def test_a_database_that_fails_at_the_start_is_no_reason_not_to_serve(tmp_path):
    left = journal.Journal.create(tmp_path)
    left.append(entry().line())
    left.close()
    book = open_ledger(tmp_path)
    book.connection.execute("PRAGMA busy_timeout = 0")
    with closing(database.connect(tmp_path)) as other:
        other.execute("BEGIN IMMEDIATE")
        book.__enter__()
        other.execute("ROLLBACK")
    book.record(entry())
    book.__exit__()
    with open_ledger(tmp_path):
        pass
    assert sums(tmp_path)[("k", "m", "2026-11-27")][0] == 2


# The request log


async def test_requests_are_kept_one_by_one_where_that_is_wanted(tmp_path):
    with open_ledger(tmp_path, log_days=30) as book:
        book.record(entry(ttft=None))
    assert rows(tmp_path, "requests") == [
        (TIME, "k", "m", "a", "openai-chat", 200, 10, 4, 2, None, 1.0)
    ]


async def test_they_are_not_where_it_is_not(tmp_path):
    with open_ledger(tmp_path) as book:
        book.record(entry())
    assert rows(tmp_path, "requests") == []


async def test_they_go_when_they_are_too_old(tmp_path):
    now = [TIME]
    with open_ledger(tmp_path, log_days=2, clock=lambda: now[0]) as book:
        for days in (0, 1, 2):
            book.record(entry(days * 86400))
        book.flush()
        assert len(rows(tmp_path, "requests")) == 3
        now[0] = TIME + 3 * 86400 + 1
        book.flush()
        assert [row[0] for row in rows(tmp_path, "requests")] == [TIME + 2 * 86400]
    assert len(sums(tmp_path)) == 3  # the sums stay


# Reading


def test_a_budgets_start_is_summed_from_its_period_on(tmp_path):
    add_key(tmp_path, "a")
    with closing(database.connect(tmp_path)) as connection:
        for day, tokens in (("2026-10-31", 1), ("2026-11-01", 10), ("2026-11-27", 100)):
            connection.execute(
                "INSERT INTO usage VALUES ('k', 'm', ?, 1, 0, ?, 0, ?)", (day, tokens, tokens)
            )
        assert usage.tokens_since(connection, "k", "2026-11") == 220
        assert usage.tokens_since(connection, "k", "2026-11-27") == 200
        assert usage.tokens_since(connection, "other", "2026-11") == 0


def test_sqlite_is_new_enough_for_what_is_asked_of_it():
    assert sqlite3.sqlite_version_info >= (3, 24)  # ON CONFLICT ... DO UPDATE
