from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing

import pytest

from cortex.gateway.auth import database, secret
from cortex.gateway.auth.keys import Key, KeyProblem, KeyStore


@pytest.fixture
def connection(tmp_path):
    with closing(database.connect(tmp_path)) as found:
        yield found


@pytest.fixture
def store(connection):
    return KeyStore(connection, lambda: 1000.0)


FULL = Key(
    "",
    "laptop",
    ("inference", "admin"),
    ("org/*", "gpt-4"),
    "interactive",
    rpm=60,
    tpm=1000,
    budget=5000,
    period="day",
    expires=2000.0,
)


def test_a_key_comes_back_as_it_was_stored_and_its_secret_does_not(store, tmp_path):
    key, whole = store.add(FULL)
    assert store.with_hashes() == [(key, secret.digest(whole))]
    assert (key.name, key.models, key.created) == (FULL.name, FULL.models, 1000.0)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert whole.encode() not in content
    assert whole[-32:].encode() not in content


def test_a_name_can_be_given_again_once_its_key_is_revoked(store):
    first, _ = store.add(Key("", "ci"))
    with pytest.raises(KeyProblem, match="already"):
        store.add(Key("", "ci"))
    assert store.revoke("ci").state(1000.0) == "revoked"
    second, _ = store.add(Key("", "ci"))
    assert {key.id: key.revoked for key in store.all()} == {first.id: 1000.0, second.id: None}
    assert store.revoke(second.id).id == second.id
    for gone in ("ci", first.id, "nobody"):
        with pytest.raises(KeyProblem, match="no key"):
            store.revoke(gone)


def test_each_change_is_seen_from_another_connection(store, tmp_path):
    with closing(database.connect(tmp_path)) as other:
        before = KeyStore(other).version()
        store.add(Key("", "a"))
        store.revoke("a")
        assert KeyStore(other).version() == before + 2


def test_a_change_that_fails_leaves_nothing_behind(store):
    store.add(Key("", "a"))
    version = store.version()
    with pytest.raises(KeyProblem):
        store.add(Key("", "a"))
    assert (store.version(), len(store.all())) == (version, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "anonymous"},
        {"name": "a b"},
        {"name": "a\n"},
        {"name": "x" * 65},
        {"scopes": ()},
        {"scopes": ("root",)},
        {"priority": "urgent"},
        {"models": ("a b",)},
        {"models": ("[ab]",)},
        {"rpm": 0},
        {"tpm": -1},
        {"budget": 5},
        {"period": "day"},
        {"budget": 5, "period": "week"},
        {"budget": 2**60, "period": "day"},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(fields):
    with pytest.raises(KeyProblem):
        Key(**{"id": "", "name": "a", **fields})


@pytest.mark.parametrize(("now", "state"), [(1999.9, "active"), (2000.0, "expired")])
def test_a_key_expires_to_the_second(now, state):
    assert FULL.state(now) == state


def test_a_caller_has_the_keys_rights_and_a_cache_of_its_own(store):
    one, two = (store.add(Key("", name, models=("a",)))[0].caller() for name in ("one", "two"))
    assert (one.name, one.models, one.scopes) == ("one", ("a",), frozenset({"inference"}))
    assert len({one.salt, two.salt, ""}) == 3


# The file


def test_the_file_is_for_its_owner_alone(store, tmp_path):
    store.add(Key("", "a"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["accounts.db"] == modes["accounts.db-wal"] == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_directorys_owner(tmp_path):
    place = tmp_path / "state"
    place.mkdir()
    os.chown(place, 12345, 12345)
    with closing(database.connect(place)) as connection:
        KeyStore(connection).add(Key("", "a"))
        assert {path.stat().st_uid for path in place.iterdir()} == {12345}


def test_a_file_of_a_newer_version_is_not_touched(connection, tmp_path):
    connection.execute("PRAGMA user_version = 99")
    for open_it in (database.connect, database.connect_to_read):
        with pytest.raises(database.DatabaseError, match="newer"):
            open_it(tmp_path)


def test_it_is_opened_while_somebody_writes(connection, tmp_path):
    connection.execute("BEGIN IMMEDIATE")
    with closing(database.connect(tmp_path)) as other:
        assert KeyStore(other).all() == []
    connection.execute("ROLLBACK")


def test_what_is_no_database_is_told_by_its_name(tmp_path):
    (tmp_path / "accounts.db").write_bytes(b"not a database, but long enough to be looked at" * 30)
    for open_it in (database.connect, database.connect_to_read):
        with pytest.raises(database.DatabaseError, match=r"accounts\.db"):
            open_it(tmp_path)


def test_reading_makes_no_file(tmp_path):
    assert database.connect_to_read(tmp_path) is None
    (tmp_path / "accounts.db").touch()
    assert database.connect_to_read(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["accounts.db"]


def test_who_reads_cannot_write(store, tmp_path):
    store.add(Key("", "a"))
    reader = database.connect_to_read(tmp_path)
    with closing(reader), pytest.raises(sqlite3.OperationalError):
        KeyStore(reader).revoke("a")
