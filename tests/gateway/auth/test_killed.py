"""A gateway process that is killed: what its clients have seen end is on record, once."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from fakes.accounts import add_key
from fakes.gateway import CHAT, MESSAGES, chat, message
from fakes.neuron import FakeNeuron
from fakes.role_process import RoleProcess
from prometheus_client import CollectorRegistry

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.gateway.auth import database, report
from cortex.gateway.auth.accounts import open_accounts

# Anthropic's input is without what was cached.
COUNTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
COUNTS += ("cache_read_input_tokens",)
ROOT = Path(__file__).parents[3]


def environment(neuron: FakeNeuron, state: Path) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return {
        **ours,
        "PYTHONPATH": str(ROOT),
        "STATE_DIRECTORY": str(state),
        "CORTEX_NEURONS": f"a={neuron.url}",
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__METRICS_LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__POLL_SECONDS": "0.1",
    }


async def requests(url: str, key: str, count: int) -> int:
    """Send *count* requests of four kinds; the tokens that their answers say they used."""
    total = 0
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": key}, timeout=10) as client:
        while not (await client.get("/v1/models")).json()["data"]:
            await trio.sleep(0.05)
        for number in range(count):
            stream = number % 4 >= 2
            path, body = (MESSAGES, message) if number % 2 else (CHAT, chat)
            answer = await client.post(path, json=body(stream=stream))
            assert answer.status_code == 200
            if stream:
                assert ("message_stop" if number % 2 else "[DONE]") in answer.text
            else:
                used = answer.json()["usage"]
                total += sum(used.get(name) or 0 for name in COUNTS)
    return total


@pytest.mark.slow
async def test_what_clients_have_seen_end_is_charged_once(tmp_path):
    key, count = add_key(tmp_path, "laptop"), 10
    neuron = FakeNeuron("a")
    neuron.hold("m")
    async with trio.open_nursery() as nursery:
        await nursery.start(neuron.run)
        command = [sys.executable, "-m", "cortex", "gateway"]
        with trio.fail_after(60), RoleProcess(command, environment(neuron, tmp_path), ROOT) as it:
            found = await trio.to_thread.run_sync(
                partial(it.wait_for_line, r"listening url=(\S+)", 30)
            )
            told = await requests(found.group(1), key, count)
        nursery.cancel_scope.cancel()  # the gateway was killed on leaving its block
    assert list(tmp_path.glob("*.journal"))
    for _ in range(2):  # taken up by the next one, and not again by the one after
        with open_accounts(tmp_path, AuthSettings(), UsageSettings(), CollectorRegistry()):
            pass
        with closing(database.connect(tmp_path)) as connection:
            (row,) = report.usage(connection, ("key", "model"))
        assert (row["key"], row["model"]) == ("laptop", "m")
        assert (row["requests"], row["errors"]) == (count, 0)
        used = row["prompt_tokens"] + row["completion_tokens"]
        # Every kind of answer uses the same here; half of them said so: numbers 0, 1, 4, 5, 8, 9.
        assert told * count == used * 6
    assert not list(tmp_path.glob("*.journal"))
