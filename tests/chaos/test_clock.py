"""A wall clock that jumps. What counts seconds is monotonic; what counts days follows the clock."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from fakes.programs import program, unavailable

from chaos.fleet import fake_neuron, gateway, running
from chaos.invariants import Baseline, settled
from chaos.load import WHOLE, Client, Ledger, load, until
from chaos.neuron import PROMPT_TOKENS
from cortex.cli.main import cli

pytestmark = pytest.mark.slow

DAY = datetime.timedelta(days=1)
BUDGET = 1000


def library() -> Path:
    program("faketime")
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return found[0] if found else unavailable("libfaketime is not where faketime has it")


class Clock:
    """The wall clock of a process, set from outside; its monotonic one goes on as it is."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(datetime.timedelta())

    def set(self, offset: datetime.timedelta) -> None:
        """Off by so much from now on."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(f"{int(offset.total_seconds()):+d}s\n")
        draft.replace(self.file)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def add_key(state: Path, name: str, *limits: str) -> str:
    made = CliRunner().invoke(cli, ["keys", "add", name, "--state-directory", str(state), *limits])
    assert made.exit_code == 0, made.output
    return made.stdout.split()[-1]


async def test_a_clock_that_jumps_breaks_no_limit_and_no_request(tmp_path):
    clock = Clock(tmp_path / "clock")
    neuron, ledger = fake_neuron(tmp_path), Ledger()
    over = gateway(tmp_path, [neuron], environ=clock.environ)
    state = tmp_path / "gateway.state"
    free = Client(over.url, ledger, key=add_key(state, "free"))
    lent = Client(over.url, ledger, key=add_key(state, "lent", "--expires", "12h"))
    rated = Client(over.url, ledger, key=add_key(state, "rated", "--rpm", "2"))
    spent = Client(
        over.url, ledger, key=add_key(state, "spent", "--budget", str(BUDGET), "--per", "day")
    )

    async def status(client: Client, **fields: Any) -> int:
        return (await client.ask(stream=False, **fields)).status

    async with running([over], [neuron]):
        assert [await status(each) for each in (lent, rated, rated, rated)] == [200, 200, 200, 429]
        assert await status(spent, max_tokens=BUDGET - PROMPT_TOKENS) == 200
        assert await status(spent) == 429
        before = Baseline.of(over, [neuron])
        async with load(free, clients=2):
            for offset in (DAY, -datetime.timedelta(hours=1), 20 * DAY, datetime.timedelta()):
                clock.set(offset)
                await until(ledger, 4, WHOLE)
                await trio.sleep(1.1)  # keys and usage are looked at each second
                ahead = offset > datetime.timedelta()
                assert await status(lent) == (401 if ahead else 200)
                assert await status(rated) == 429  # no minute has passed
                # A day has its own budget, and a day that comes again has what is left of it.
                assert await status(spent) == (200 if ahead else 429)
        node = await over.node("node-0")
        assert node["healthy"]
        assert "not healthy" not in over.log
        await settled(over, [neuron], ledger, before, key=free.key)
