"""The file that holds keys and usage: SQLite in the state directory, for its owner's eyes only.

Several processes use it at once: gateways, and the command line. It is in write-ahead mode, so that
who reads waits for nobody. Usage is cut by SQLite's own transactions; what a killed process had not
written yet is in its journal (`journal`).
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from cortex.config.errors import ConfigError

NAME = "accounts.db"
BUSY_SECONDS = 5.0  # to wait for another process's transaction

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, scopes TEXT NOT NULL,
    models TEXT NOT NULL, priority TEXT NOT NULL, rpm INTEGER, tpm INTEGER, budget INTEGER,
    period TEXT, created REAL NOT NULL, expires REAL, revoked REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS names ON keys (name) WHERE revoked IS NULL;
CREATE TABLE IF NOT EXISTS changes (keys INTEGER NOT NULL);
INSERT INTO changes SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM changes);
CREATE TABLE IF NOT EXISTS usage (
    key TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL,
    requests INTEGER NOT NULL, errors INTEGER NOT NULL,
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
    PRIMARY KEY (key, model, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    time REAL NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, node TEXT NOT NULL,
    dialect TEXT NOT NULL, code INTEGER NOT NULL,
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
    ttft REAL, seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (time);
CREATE TABLE IF NOT EXISTS journals (name TEXT PRIMARY KEY, applied INTEGER NOT NULL)
"""


class DatabaseError(ConfigError):
    """The file cannot be opened, or is none of ours. One line that names it."""


def connect(directory: Path) -> sqlite3.Connection:
    """The database in *directory*, made where there is none; its user may be any one thread at a
    time. `DatabaseError` when it cannot be had."""
    path = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path)
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as exc:
        raise DatabaseError(f"{path}: {_reason(exc)}") from exc
    try:
        _prepare(connection)
    except BaseException as exc:
        connection.close()
        if isinstance(exc, sqlite3.Error):
            raise DatabaseError(f"{path}: {_reason(exc)}") from exc
        raise
    return connection


def connect_to_read(directory: Path) -> sqlite3.Connection | None:
    """The database in *directory*, for reading; None where there is none."""
    path = directory / NAME
    if not exists(directory):
        return None
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS
        )
    except sqlite3.Error as exc:
        raise DatabaseError(f"{path}: {_reason(exc)}") from exc
    try:
        if _check_version(connection):
            return connection
    except BaseException as exc:
        connection.close()
        if isinstance(exc, sqlite3.Error):
            raise DatabaseError(f"{path}: {_reason(exc)}") from exc
        raise
    connection.close()
    return None


def exists(directory: Path) -> bool:
    """Whether there is a database in *directory*. `DatabaseError` when that cannot be told."""
    path = directory / NAME
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise DatabaseError(f"{path}: {_reason(exc)}") from exc
    return True


def _create(path: Path) -> None:
    """An empty file that only its owner may read. Made by root it belongs to the directory's
    owner, who is to serve from it. SQLite gives its side files the same owner and mode."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit survives the process; the last ones may be lost with the machine's power.
    connection.execute("PRAGMA synchronous = NORMAL")
    if _check_version(connection) == VERSION:
        return  # without waiting for whoever writes
    connection.execute("BEGIN IMMEDIATE")
    try:
        _check_version(connection)
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _check_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise DatabaseError(f"{NAME} was written by a newer version of cortex")
    return int(version)  # 0: nothing is in it yet


def _reason(exc: Exception) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)
