from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import partial

import pytest
import trio
from fakes.accounts import add_key, revoke_key
from prometheus_client import CollectorRegistry

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.errors import Unauthorized
from cortex.gateway.auth import database
from cortex.gateway.auth.accounts import has_keys, open_accounts
from cortex.gateway.auth.keyring import KeyRing
from cortex.gateway.auth.keys import KeyStore


@pytest.fixture
def connection(tmp_path):
    with closing(database.connect(tmp_path)) as found:
        yield found


def test_without_a_store_there_are_no_keys():
    ring = KeyRing()
    assert (ring.has_keys, ring.has_admin, ring.keys) == (False, False, ())
    with pytest.raises(Unauthorized):
        ring.find("ctx-0-0")


def test_a_key_is_found_by_its_secret_alone(tmp_path, connection):
    secret = add_key(tmp_path, "laptop")
    ring = KeyRing(KeyStore(connection))
    assert ring.find(secret).name == "laptop"
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), ring.keys[0].id, "laptop"):
        with pytest.raises(Unauthorized):
            ring.find(wrong)


def test_a_key_is_looked_up_by_its_hash_and_never_compared(tmp_path, connection, monkeypatch):
    """How long a wrong key takes depends on its own hash only: on nothing that is secret."""
    secret = add_key(tmp_path, "laptop")
    ring = KeyRing(KeyStore(connection))
    hashed: list[str] = []

    def digest(key: str) -> bytes:
        hashed.append(key)
        return b"\0" * 32

    monkeypatch.setattr("cortex.gateway.auth.secret.digest", digest)
    with pytest.raises(Unauthorized):
        ring.find(secret)
    assert hashed == [secret]


def test_an_expired_key_is_told_so(tmp_path, connection):
    secret = add_key(tmp_path, "a", expires=50.0)
    now = [49.0]
    ring = KeyRing(KeyStore(connection), lambda: now[0])
    assert ring.find(secret).name == "a"
    now[0] = 50.0
    with pytest.raises(Unauthorized, match="expired"):
        ring.find(secret)


async def test_a_running_gateway_follows_within_a_second(tmp_path, connection, autojump_clock):
    ring = KeyRing(KeyStore(connection))
    changes: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run, lambda: changes.append(trio.current_time()))
        await trio.sleep(3.5)
        secret = add_key(tmp_path, "a", scopes=("admin",))
        await trio.sleep(1)
        assert (ring.find(secret).name, ring.has_admin) == ("a", True)
        revoke_key(tmp_path, "a")
        await trio.sleep(1)
        with pytest.raises(Unauthorized):
            ring.find(secret)
        # A key's end opens nothing that its presence had closed.
        assert (ring.has_keys, ring.has_admin) == (True, False)
        assert changes == [4.0, 5.0]
        nursery.cancel_scope.cancel()


async def test_other_writes_to_the_database_are_no_change(tmp_path, connection, autojump_clock):
    ring = KeyRing(KeyStore(connection))
    changes: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run, lambda: changes.append(1))
        with closing(database.connect(tmp_path)) as other:
            other.execute("INSERT INTO usage VALUES ('', 'm', '2026-01-01', 1, 0, 0, 0, 0)")
        await trio.sleep(3)
        assert changes == []
        nursery.cancel_scope.cancel()


def test_keys_that_make_no_sense_end_the_start(tmp_path, connection):
    add_key(tmp_path, "a")
    connection.execute("UPDATE keys SET priority = 'urgent'")
    connection.execute("PRAGMA wal_checkpoint")
    for reading in (has_keys, partial(opened, tmp_path)):
        with pytest.raises(database.DatabaseError, match=r"accounts\.db"):
            reading(tmp_path)


def opened(directory, _) -> None:
    with open_accounts(directory, AuthSettings(), UsageSettings(), CollectorRegistry()):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_is_no_empty_one(tmp_path):
    tmp_path.chmod(0)
    try:
        with pytest.raises(database.DatabaseError):
            has_keys(tmp_path)
    finally:
        tmp_path.chmod(0o700)


async def test_while_the_database_fails_the_keys_last_seen_hold(
    tmp_path, connection, autojump_clock, caplog
):
    secret = add_key(tmp_path, "a")

    class Failing(KeyStore):
        failing = False

        def version(self):
            if self.failing:
                raise sqlite3.OperationalError("disk I/O error")
            return super().version()

    store = Failing(connection)
    ring = KeyRing(store)
    changes: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run, lambda: changes.append(1))
        Failing.failing = True
        other = add_key(tmp_path, "b")
        await trio.sleep(5.5)
        assert ring.find(secret).name == "a"
        assert sum("cannot be read" in each.message for each in caplog.records) == 1
        Failing.failing = False
        await trio.sleep(1)
        assert ring.find(other).name == "b"
        nursery.cancel_scope.cancel()
