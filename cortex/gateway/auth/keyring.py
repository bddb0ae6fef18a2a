"""The keys in force: in memory, looked up by hash, at most a second behind the database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

import attrs
import trio

from cortex.errors import Unauthorized
from cortex.gateway.auth import secret
from cortex.gateway.auth.caller import ADMIN, Caller
from cortex.gateway.auth.keys import Key, KeyStore
from cortex.service import logs

REFRESH_SECONDS: Final = 1.0

log = logs.get("gateway.auth")


@attrs.frozen(eq=False)
class _Entry:
    caller: Caller
    expires: float | None


class KeyRing:
    """Owns the keys that requests are checked against. No request touches the disk."""

    def __init__(
        self, store: KeyStore | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Of the keys in *store*, read at once; without one there are none."""
        self._store = store
        self._clock = clock  # Unix seconds
        self._entries: dict[bytes, _Entry] = {}
        self._keys: tuple[Key, ...] = ()
        self._data = self._version = -1  # of the database, when it was last looked at
        self.has_keys = False  # once there was one it stays so: a key's end opens nothing
        self.has_admin = False
        if store is not None:
            self._load(store)

    @property
    def stored(self) -> bool:
        """Whether there is a database to follow."""
        return self._store is not None

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those that were not revoked."""
        return self._keys

    def find(self, key: str) -> Caller:
        """Whom *key* belongs to. `Unauthorized` when it is unknown, revoked or expired."""
        entry = self._entries.get(secret.digest(key))
        if entry is None:
            raise Unauthorized("the API key is not valid")
        if entry.expires is not None and self._clock() >= entry.expires:
            raise Unauthorized("the API key has expired")
        return entry.caller

    async def run(self, changed: Callable[[], None]) -> NoReturn:
        """Follow the database until cancelled; *changed* is called after each change. While it
        cannot be read the keys that were last seen hold."""
        trouble = False
        while True:
            await trio.sleep(REFRESH_SECONDS)
            try:
                if self._store is not None and self._changed(self._store):
                    self._load(self._store)
                    changed()
                trouble = False
            except (sqlite3.Error, ValueError) as exc:
                self._data = self._version = -1  # look again, whatever was done of it
                if not trouble:
                    log.error("keys cannot be read; those last seen hold", exc=exc)
                trouble = True

    def _changed(self, store: KeyStore) -> bool:
        """SQLite's own number is in memory that processes share: looking at it takes microseconds
        and waits for nobody. It changes with every commit of anybody else; ours, which is read
        only then, changes with the keys alone."""
        (data,) = store.connection.execute("PRAGMA data_version").fetchone()
        if data == self._data:
            return False
        self._data = data
        return store.version() != self._version

    def _load(self, store: KeyStore) -> None:
        self._version = store.version()  # first: what is changed meanwhile is seen the next time
        self._set(store.with_hashes())

    def _set(self, found: Iterable[tuple[Key, bytes]]) -> None:
        found = list(found)
        valid = [(key, digest) for key, digest in found if key.revoked is None]
        self._entries = {digest: _Entry(key.caller(), key.expires) for key, digest in valid}
        self._keys = tuple(key for key, _ in valid)
        self.has_keys = bool(found)
        self.has_admin = any(ADMIN in key.scopes for key in self._keys)
