"""`cortex keys` and `cortex usage`, against real files."""

from __future__ import annotations

import json
import time
from contextlib import closing

import pytest
from click.testing import CliRunner

from cortex.cli.main import cli
from cortex.gateway.auth import database
from cortex.gateway.auth.keyring import KeyRing
from cortex.gateway.auth.keys import KeyStore


@pytest.fixture
def run(tmp_path):
    def run(*words: str, code: int = 0):
        result = CliRunner().invoke(
            cli, [*words, "--state-directory", str(tmp_path)], catch_exceptions=False
        )
        assert result.exit_code == code, result.output
        return result

    return run


def callers(directory):
    with closing(database.connect(directory)) as connection:
        return KeyRing(KeyStore(connection))


def test_a_key_is_shown_once_and_works(run, tmp_path):
    result = run("keys", "add", "laptop", "--model", "org/*", "--rpm", "60")
    secret = result.stdout.strip()
    caller = callers(tmp_path).find(secret)
    assert (caller.name, caller.models) == ("laptop", ("org/*",))
    assert caller.key_id in result.stderr
    listed = run("keys", "list").output
    assert "laptop" in listed
    assert "60 rpm" in listed
    assert secret not in listed
    assert secret[-32:] not in listed


def test_everything_a_key_can_be_is_an_option(run):
    words = ["--scope", "inference", "--scope", "admin", "--model", "a", "--model", "b"]
    words += ["--tpm", "9", "--budget", "100", "--per", "month", "--priority", "batch"]
    made = json.loads(run("keys", "add", "ci", *words, "--expires", "90d", "--json").stdout)
    (listed,) = json.loads(run("keys", "list", "--json").stdout)["keys"]
    assert {**listed, "key": made["key"]} == made
    assert listed["expires"] == time.strftime(
        "%Y-%m-%dT%H:%M:%SZ", time.gmtime(_unix(listed["created"]) + 90 * 86400)
    )
    for name in ("id", "created", "expires"):
        del listed[name]
    assert listed == {
        "name": "ci",
        "state": "active",
        "scopes": ["inference", "admin"],
        "models": ["a", "b"],
        "priority": "batch",
        "tpm": 9,
        "budget": 100,
        "period": "month",
    }


def _unix(stamp: str) -> float:
    import calendar

    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a b"], "cannot be a key's name"),
        (["anonymous"], "taken"),
        (["a", "--budget", "5"], "period"),
        (["a", "--model", "x y"], "no model id"),
        (["a", "--expires", "soon"], "expected a date or a duration"),
        (["a", "--expires", "2020-01-01"], "over already"),
        (["a", "--expires", "0"], "over already"),
        (["a", "--rpm", "0"], "rpm"),
        (["a", "--scope", "root"], "root"),
    ],
)
def test_a_key_that_makes_no_sense_is_a_wrong_flag(run, tmp_path, words, said):
    assert said in run("keys", "add", *words, code=2).output
    assert not list(tmp_path.iterdir())


def test_a_date_is_taken_as_utc(run):
    made = json.loads(run("keys", "add", "a", "--expires", "2199-01-31", "--json").stdout)
    assert made["expires"] == "2199-01-31T00:00:00Z"


def test_a_name_in_use_is_refused(run):
    run("keys", "add", "a")
    assert "already" in run("keys", "add", "a", code=1).output


def test_a_revoked_key_is_listed_only_when_asked_for(run):
    assert "there are no keys" in run("keys", "list").output
    assert "no keys" in run("keys", "revoke", "a", code=1).output
    run("keys", "add", "a")
    assert "is revoked" in run("keys", "revoke", "a").output
    assert "there are no keys" in run("keys", "list").output
    assert "revoked" in run("keys", "list", "--all").output
    assert "no key 'a'" in run("keys", "revoke", "a", code=1).output


def test_what_is_no_database_is_told_in_one_line(run, tmp_path):
    (tmp_path / "accounts.db").write_bytes(b"x" * 4096)
    for words in (["keys", "list"], ["keys", "add", "a"], ["usage"]):
        result = run(*words, code=1)
        assert "accounts.db" in result.output
        assert len(result.output.splitlines()) == 1


# Usage


@pytest.fixture
def used(run, tmp_path):
    run("keys", "add", "laptop")
    run("keys", "add", "ci")
    with closing(database.connect(tmp_path)) as connection:
        laptop, ci = sorted(KeyStore(connection).all(), key=lambda key: key.name, reverse=True)
        rows = [
            (laptop.id, "small", "2026-11-26", 3, 1, 30, 10, 6),
            (laptop.id, "small", "2026-11-27", 1, 0, 10, 0, 2),
            (laptop.id, "big", "2026-11-27", 1, 0, 5, 0, 1),
            (ci.id, "big", "2026-11-27", 2, 2, 0, 0, 0),
            ("", "big", "2026-10-01", 7, 0, 70, 0, 7),
        ]
        connection.executemany("INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return laptop, ci


def rows(result):
    return [tuple(row.values()) for row in json.loads(result.stdout)["usage"]]


def test_usage_is_summed_by_key_and_model(run, used):
    assert rows(run("usage", "--json")) == [
        ("anonymous", "big", 7, 0, 70, 0, 7),
        ("ci", "big", 2, 2, 0, 0, 0),
        ("laptop", "big", 1, 0, 5, 0, 1),
        ("laptop", "small", 4, 1, 40, 10, 8),
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--by", "key"], [("anonymous", 7), ("ci", 2), ("laptop", 5)]),
        (["--by", "day"], [("2026-10-01", 7), ("2026-11-26", 3), ("2026-11-27", 4)]),
        (["--by", "model", "--key", "laptop"], [("big", 1), ("small", 4)]),
        (["--by", "model", "--key", "anonymous"], [("big", 7)]),
        (["--by", "key", "--model", "small"], [("laptop", 4)]),
        (["--by", "day", "--since", "2026-11-27"], [("2026-11-27", 4)]),
        (["--by", "day", "--since", "2199-01-01"], []),
        (["--by", "day", "--key", "nobody"], []),
    ],
)
def test_usage_can_be_cut_any_way(run, used, words, expected):
    assert [(row[0], row[1]) for row in rows(run("usage", "--json", *words))] == expected


def test_a_key_can_be_named_by_its_id(run, used):
    assert rows(run("usage", "--json", "--key", used[1].id, "--by", "model"))[0][1] == 2


def test_usage_of_a_revoked_key_is_not_mixed_with_its_successors(run, used):
    laptop, _ = used
    run("keys", "revoke", "laptop")
    run("keys", "add", "laptop")
    names = {row[0] for row in rows(run("usage", "--json"))}
    assert names == {"anonymous", "ci", f"laptop ({laptop.id})"}


def test_usage_is_a_table_for_people(run, used):
    output = run("usage", "--by", "day").output
    assert output.split()[:3] == ["DAY", "REQUESTS", "ERRORS"]
    assert "nothing was used" in run("usage", "--key", "nobody").output


def test_without_a_database_nothing_was_used(run, tmp_path):
    assert "nothing was used" in run("usage").output
    assert not list(tmp_path.iterdir())
