"""This host: its ports, its descriptors, and its clock beside its peers'."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cortex.cli.doctor.peer import Heard
from cortex.cli.doctor.report import Finding, Judge
from cortex.config.values import split_listen

DESCRIPTORS = 4096  # connections, files and pipes of a busy gateway
SKEW_WARNING, SKEW_FAILED = 5.0, 60.0

Recognise = Callable[[], str | None]


def port(
    judge: Judge, name: str, listen: str, recognise: Recognise, root: Path = Path("/proc")
) -> Finding:
    """Whether *listen* is free or held by a cortex that answers: *recognise* says which, None for
    somebody else."""
    check = f"port {name}"
    host, number = split_listen(listen)
    if not number:
        return judge.ok(check, "a free one is chosen at start")
    try:
        family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
            probe.listen(1)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            return judge.failed(
                check, f"{listen}: {exc.strerror or exc}", "choose another address in the file"
            )
    else:
        return judge.ok(check, f"{listen} is free: nothing listens there yet")
    held = recognise()
    if held is not None:
        return judge.ok(check, f"{listen} is held by {held}")
    return judge.failed(
        check,
        f"{listen} is taken by {owner_of(number, root) or 'somebody else'}",
        "stop that program, or choose another port",
    )


def owner_of(port: int, proc: Path = Path("/proc")) -> str | None:
    """``name (pid N)`` of the process that listens on *port*; None where that cannot be seen."""
    inodes = _listening(port, proc)
    try:
        people = [entry for entry in proc.iterdir() if entry.name.isdigit()] if inodes else []
    except OSError:
        return None
    for process in people:
        with suppress(OSError):  # it has ended, or is another user's
            if any(_leads_to(link, inodes) for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text(errors="replace").strip()
                return f"{name} (pid {process.name})"
    return None


def _leads_to(link: Path, inodes: set[str]) -> bool:
    try:
        return os.readlink(link) in inodes
    except OSError:  # closed meanwhile
        return False


def _listening(port: int, proc: Path) -> set[str]:
    """``socket:[inode]`` of the sockets that listen on *port*."""
    found: set[str] = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            rows = (proc / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            listening = len(fields) > 9 and fields[3] == "0A"
            if listening and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def descriptors(judge: Judge, hard: int | None = None) -> Finding:
    """A role raises its limit of open files to the hard one."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    if limit == resource.RLIM_INFINITY:
        return judge.ok("descriptors", "open files are not limited")
    if limit < DESCRIPTORS:
        return judge.warning(
            "descriptors",
            f"at most {limit} open files: as many connections, and no more",
            "raise the hard limit: LimitNOFILE= in the unit, or ulimit -Hn",
        )
    return judge.ok("descriptors", f"up to {limit} open files")


def clock(judge: Judge, peer: str, heard: Heard) -> Finding | None:
    """This host's clock beside that of *peer*; None where it told no time."""
    if heard.skew is None:
        return None
    check, apart = f"clock {peer}", max(0.0, abs(heard.skew) - heard.doubt)
    ahead = "ahead of" if heard.skew > 0 else "behind"
    detail = f"{peer} is {abs(heard.skew):.0f} s {ahead} this host"
    advice = "have both hosts keep time: timedatectl set-ntp true"
    if apart > SKEW_FAILED:
        return judge.failed(check, detail, advice)
    if apart > SKEW_WARNING:
        return judge.warning(check, detail, advice)
    return judge.ok(check, f"agrees with {peer} within seconds")
