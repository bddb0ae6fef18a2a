"""Files and folders: room, rights, and who else may read what is secret."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from cortex.cli.doctor.report import Finding, Judge
from cortex.config.errors import ConfigError
from cortex.config.loader import read_toml

GIB = 1 << 30
MIB = 1 << 20
TRIAL = 64 * 1024  # bytes that are written, and removed
SECRET_KEYS = ("token", "headers")


@attrs.frozen
class Need:
    """Room that a folder needs: below *least* bytes it fails, below *enough* it is soon to."""

    least: int
    enough: int


STATE = Need(64 * MIB, GIB)
WEIGHTS = Need(2 * GIB, 20 * GIB)
KERNELS = Need(64 * MIB, GIB)

Statvfs = Callable[[Path], Any]  # as os.statvfs


def folder(
    judge: Judge, check: str, place: Path, need: Need, statvfs: Statvfs = os.statvfs
) -> Finding:
    """Whether *place*, or where it will be made, can be written to and has room."""
    there = nearest(place)
    advice = f"give this user {place}, or name another place"
    if not there.is_dir():
        return judge.failed(check, f"{there} is no folder", advice)
    try:
        room = statvfs(there)
        free = room.f_bavail * room.f_frsize
        _write(there)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if there != place and exc.errno in (errno.EACCES, errno.EPERM):
            return judge.warning(
                check,
                f"{place} is not there, and this user cannot make it",
                f"{advice}, if no unit does",
            )
        return judge.failed(check, f"{place} cannot be written to: {reason}", advice)
    made = "" if there == place else ", is made at start"
    detail = f"{place}: {_size(free)} free{made}"
    if free < need.least:
        return judge.failed(check, detail, f"free room: {_size(need.least)} is the least")
    if free < need.enough:
        return judge.warning(check, detail, f"free room: {_size(need.enough)} is enough")
    if room.f_favail == 0 and room.f_files:
        return judge.failed(check, f"{place}: no inode is free", "remove files there")
    return judge.ok(check, detail)


def nearest(place: Path) -> Path:
    """*place*, or the nearest folder above it that is there."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _write(directory: Path) -> None:
    """Write a file there and remove it. OSError when that does not work."""
    handle, name = tempfile.mkstemp(prefix=".cortex-doctor-", dir=directory)
    try:
        data = bytes(TRIAL)
        while data:  # a full disk may take a part and then nothing
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
        os.unlink(name)


def executable(judge: Judge, place: Path, statvfs: Statvfs = os.statvfs) -> Finding:
    """Whether code may be loaded from *place*, where compiled kernels are kept."""
    check, there = "kernel cache", nearest(place)
    try:
        flags, owner = statvfs(there).f_flag, there.stat()
    except OSError as exc:
        return judge.failed(check, f"{place}: {exc.strerror or exc}", "set CORTEX_CACHE_DIR")
    if flags & os.ST_NOEXEC:
        return judge.failed(
            check,
            f"{place} is on a file system that is mounted noexec",
            "set CORTEX_CACHE_DIR and TRITON_CACHE_DIR to a place that is not",
        )
    if there == place and (owner.st_uid != os.geteuid() or owner.st_mode & 0o022):
        return judge.failed(
            check,
            f"{place} belongs to another user or can be written to by others: nothing is loaded",
            f"chown and chmod 700 {place}",
        )
    return judge.ok(check, f"code may be loaded from {place}")


def configuration(judge: Judge, path: Path) -> Iterator[Finding]:
    """Whether others can read the secrets in *path*, or change what it says."""
    check = f"file {path.name}"
    try:
        table, mode = read_toml(path), path.stat().st_mode
    except (ConfigError, OSError) as exc:
        yield judge.failed(check, str(exc), "see: cortex check")
        return
    if mode & stat.S_IWOTH:
        yield judge.failed(check, f"{path}: everybody can change it", f"chmod 640 {path}")
    elif mode & stat.S_IROTH and _secret(table):
        yield judge.warning(
            check,
            f"{path}: everybody on this host can read the token in it",
            f"chmod 640 {path}, or keep the token in a token_file",
        )
    else:
        yield judge.ok(check, f"{path} is read by those who may")


def secret_file(judge: Judge, check: str, path: Path) -> Finding:
    """Whether a file that is a secret as a whole is read by its owner and group alone."""
    try:
        found = path.stat()
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        return judge.failed(
            check, f"{path}: {exc.strerror or exc}", "let the user of the service read it"
        )
    if found.st_mode & 0o007:
        return judge.failed(
            check, f"{path}: everybody on this host may use it", f"chmod 640 {path}"
        )
    return judge.ok(check, f"{path} is its owner's and group's alone")


def state(judge: Judge, directory: Path) -> Iterator[Finding]:
    """Who owns the state directory, and whether its database is its owner's alone."""
    check = "state owner"
    if not directory.is_dir():
        return
    found = directory.stat()
    if found.st_mode & stat.S_IWOTH:
        yield judge.failed(
            check, f"{directory}: everybody can write there", f"chmod 750 {directory}"
        )
    elif os.geteuid() not in (0, found.st_uid):
        yield judge.warning(
            check,
            f"{directory} belongs to user {found.st_uid}, this is user {os.geteuid()}",
            "run doctor as the user of the service",
        )
    else:
        yield judge.ok(check, f"{directory} belongs to user {found.st_uid}")
    for database in sorted(directory.glob("accounts.db*")):
        if database.stat().st_mode & 0o077:
            yield judge.failed(
                "accounts", f"{database}: others can read it", f"chmod 600 {database}"
            )


def _secret(table: dict[str, Any]) -> bool:
    tables = [table, *(each for each in table.get("neurons", []) if isinstance(each, dict))]
    return any(each.get(key) for each in tables for key in SECRET_KEYS)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
