"""Keys at rest: who may use the gateway, and for what."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from cortex.gateway.auth import secret
from cortex.gateway.auth.caller import ADMIN, INFERENCE, NORMAL, PRIORITIES, Caller
from cortex.gateway.auth.limits import Limits

DAY = "day"
MONTH = "month"
SCOPES = (INFERENCE, ADMIN)
PERIODS = (DAY, MONTH)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._:@/+*?-]{0,199}")
_RESERVED = frozenset({"anonymous", "unknown"})
_COLUMNS = "id, name, scopes, models, priority, rpm, tpm, budget, period, created, expires, revoked"


class KeyProblem(ValueError):
    """A key cannot be as it was asked for, or is not there. One line."""


@attrs.frozen
class Key:
    """What is known of a key besides its secret.

    ``rpm`` and ``tpm`` are requests and tokens a minute, ``budget`` is tokens a ``period``; None
    is no limit. Times are Unix seconds. ``models`` are ids, aliases or patterns with ``*`` and
    ``?``; empty means all. `KeyProblem` when a value is none of that.
    """

    id: str
    name: str
    scopes: tuple[str, ...] = (INFERENCE,)
    models: tuple[str, ...] = ()
    priority: str = NORMAL
    rpm: int | None = None
    tpm: int | None = None
    budget: int | None = None
    period: str | None = None
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def __attrs_post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise KeyProblem(
                f"{self.name!r} cannot be a key's name (letters, digits and . _ @ -, at most 64; "
                "'anonymous' and 'unknown' are taken)"
            )
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise KeyProblem(f"a key's scopes are among {', '.join(SCOPES)}")
        if self.priority not in PRIORITIES:
            raise KeyProblem(f"a key's priority is one of {', '.join(PRIORITIES)}")
        for pattern in self.models:
            if not _PATTERN.fullmatch(pattern):
                raise KeyProblem(f"{pattern!r} is no model id and no pattern of one")
        for what, limit in (("rpm", self.rpm), ("tpm", self.tpm), ("budget", self.budget)):
            if limit is not None and not 1 <= limit < 2**53:
                raise KeyProblem(f"{what} must be 1 or more, got {limit}")
        if (self.budget is None) != (self.period is None):
            raise KeyProblem("a budget needs its period, and a period its budget")
        if self.period is not None and self.period not in PERIODS:
            raise KeyProblem(f"a budget is per {' or '.join(PERIODS)}")

    def caller(self) -> Caller:
        """Whom a request with this key comes from. Each key has a prefix cache of its own: how
        fast an answer begins would else tell one key what another has sent."""
        scopes = frozenset(self.scopes)
        return Caller(self.name, self.id, scopes, self.models, self.priority, salt=self.id)

    @property
    def limits(self) -> Limits:
        return Limits(self.rpm, self.tpm, self.budget, self.period)

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``, at *now*."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


@attrs.frozen(eq=False)
class KeyStore:
    """The keys in the database. Errors of SQLite come out as they are."""

    connection: sqlite3.Connection
    clock: Callable[[], float] = time.time

    def add(self, key: Key) -> tuple[Key, str]:
        """Store *key* with a new id and secret; the secret can be had here and never again.

        `KeyProblem` when a key of that name is in use.
        """
        key_id, whole = secret.generate()
        key = attrs.evolve(key, id=key_id, created=self.clock())
        row = (
            *(key.id, key.name, ",".join(key.scopes), json.dumps(key.models), key.priority),
            *(key.rpm, key.tpm, key.budget, key.period, key.created, key.expires, key.revoked),
        )
        with self._changing():
            try:
                self.connection.execute(
                    f"INSERT INTO keys ({_COLUMNS}, hash) VALUES ({'?, ' * 12}?)",
                    (*row, secret.digest(whole)),
                )
            except sqlite3.IntegrityError:
                raise KeyProblem(f"there is a key named {key.name!r} already") from None
        return key, whole

    def revoke(self, name_or_id: str) -> Key:
        """Take the rights of a key away, for good. `KeyProblem` when there is none."""
        with self._changing():
            found = [key for key in self.all() if key.revoked is None]
            named = [key for key in found if name_or_id == key.name]  # before another one's id
            named = named or [key for key in found if name_or_id == key.id]
            if not named:
                raise KeyProblem(f"there is no key {name_or_id!r} in use")
            key = attrs.evolve(named[0], revoked=self.clock())
            self.connection.execute(
                "UPDATE keys SET revoked = ? WHERE id = ?", (key.revoked, key.id)
            )
        return key

    def all(self) -> list[Key]:
        """Every key there ever was, the oldest first."""
        return [key for key, _ in self.with_hashes()]

    def with_hashes(self) -> list[tuple[Key, bytes]]:
        rows = self.connection.execute(
            f"SELECT {_COLUMNS}, hash FROM keys ORDER BY created, id"
        ).fetchall()
        return [(_key(row), bytes(row[-1])) for row in rows]

    def version(self) -> int:
        """Changes with every key that is added or revoked."""
        (count,) = self.connection.execute("SELECT keys FROM changes").fetchone()
        return int(count)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("UPDATE changes SET keys = keys + 1")
        except BaseException:
            self.connection.rollback()
            raise
        self.connection.commit()


def _key(row: tuple[object, ...]) -> Key:
    fields = dict(zip(_COLUMNS.split(", "), row, strict=False))
    fields["scopes"] = tuple(str(fields["scopes"]).split(","))
    fields["models"] = tuple(json.loads(str(fields["models"])))
    return Key(**fields)  # type: ignore[arg-type]
