"""What `cortex pull` shows: a bar on a terminal, lines in a pipe, JSON where it is wanted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import attrs
import click

from cortex.cli.exits import shown
from cortex.wire import neuron as wire

PLAIN_SECONDS = 10.0  # between two lines about the same stage
JSON_SECONDS = 1.0
MEBIBYTE = 1 << 20
ENDS = (wire.PULLED, wire.FAILED, wire.CANCELLED)


class PullView(Protocol):
    def show(self, where: str, pull: wire.Pull) -> None:
        """*pull* as it is now at *where*: a node, or "" for this host. Called often."""
        ...


@contextmanager
def open_view(*, as_json: bool) -> Iterator[PullView]:
    """The view that goes with where the output goes. Progress is for stderr, JSON for stdout."""
    if as_json:
        yield JsonLines()
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, Progress, TextColumn

        from cortex.cli import tables

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[far]}"),
        )
        with Progress(*columns, console=tables.console(stderr=True), transient=True) as bars:
            yield Bars(bars)
    else:
        yield PlainLines()


@attrs.define(eq=False)
class JsonLines:
    """An object a line: now and then while it goes on, and the last one says how it ended."""

    clock: Callable[[], float] = time.monotonic
    _told: dict[str, float] = attrs.field(factory=dict, init=False)

    def show(self, where: str, pull: wire.Pull) -> None:
        now = self.clock()
        due = now - self._told.get(where, float("-inf")) >= JSON_SECONDS
        if due or pull.status in ENDS:
            self._told[where] = now
            click.echo(json.dumps(as_object(where, pull)))


@attrs.define(eq=False)
class PlainLines:
    """A line for each stage, and one now and then within it."""

    clock: Callable[[], float] = time.monotonic
    _told: dict[str, tuple[str, float]] = attrs.field(factory=dict, init=False)

    def show(self, where: str, pull: wire.Pull) -> None:
        if pull.status in ENDS or pull.stage in (None, "resolve") or not pull.bytes_total:
            return
        stage, at = self._told.get(where, ("", 0.0))
        if stage != pull.stage or self.clock() - at >= PLAIN_SECONDS:
            self._told[where] = (str(pull.stage), self.clock())
            line = f"{title(where, pull)}: {shown(str(pull.stage))} {far(pull)}"
            click.echo(line.rstrip(), err=True)


@attrs.define(eq=False)
class Bars:
    """A bar for each node."""

    _bars: Any
    _tasks: dict[str, Any] = attrs.field(factory=dict, init=False)

    def show(self, where: str, pull: wire.Pull) -> None:
        if where not in self._tasks:
            self._tasks[where] = self._bars.add_task("", total=None, far="")
        total = pull.bytes_total
        self._bars.update(
            self._tasks[where],
            description=shown(f"{title(where, pull)}: {pull.stage or pull.status}"),
            total=total,
            completed=(pull.bytes_done or 0) if total else 0,
            far=far(pull),
        )


def title(where: str, pull: wire.Pull) -> str:
    return shown(f"{pull.id} on {where}" if where else pull.id)


def far(pull: wire.Pull) -> str:
    """``1.2 of 4.0 GiB, 95 MiB/s, 30 s left``, as far as known."""
    from cortex.cli.tables import duration

    if not pull.bytes_total:
        return ""
    done, total = pull.bytes_done or 0, pull.bytes_total
    words = [f"{size(done)} of {size(total)}, {done / total:.0%}"]
    if pull.bytes_per_second is not None:
        words.append(f"{size(int(pull.bytes_per_second))}/s")
    if pull.eta_seconds is not None:
        words.append(f"{duration(pull.eta_seconds)} left")
    return ", ".join(words)


def size(count: int) -> str:
    """Bytes as a person says them."""
    if count < MEBIBYTE:
        return f"{count / 1024:.0f} KiB" if count >= 1024 else f"{count} bytes"
    whole = count / MEBIBYTE
    return f"{whole / 1024:.1f} GiB" if whole >= 1024 else f"{whole:.1f} MiB"


def outcome(where: str, pull: wire.Pull, *, verified: bool) -> str:
    """How it ended, in a line."""
    name = title(where, pull)
    if pull.status == wire.FAILED:
        return f"{name}: {shown(str(pull.error))}"
    if pull.status == wire.CANCELLED:
        return f"{name}: stopped; what came is kept, and the next pull goes on from there"
    told = f"{name} is here" if not where else f"{name}: there"
    if pull.fetched:
        told += f", {size(pull.fetched)} fetched in {pull.seconds or 0:.0f} s"
    elif pull.offline:
        told += ", as the cache has it: the hub is out of reach"
    else:
        told += " already"
    if verified:
        told += ", verified"
    if pull.repaired:
        told += f", repaired: {shown(', '.join(pull.repaired))}"
    return f"{told} ({size(pull.size or 0)})" + (f"\n{shown(pull.path)}" if pull.path else "")


def as_object(where: str, pull: wire.Pull) -> dict[str, Any]:
    fields = attrs.asdict(pull, filter=lambda _, value: value is not None)
    return {**({"node": where} if where else {}), **fields}
