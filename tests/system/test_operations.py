"""The operator's commands against a real gateway: what one writes, the others read."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio
from click.testing import CliRunner, Result
from fakes.gateway import RunningGateway, gateway
from fakes.neuron import FakeNeuron

from cortex.cli.main import cli
from cortex.config.catalogue import Catalogue, CatalogueEntry

pytestmark = pytest.mark.slow

ENTRY = CatalogueEntry("org/m", vram_mb=1000)


async def cortex(running: RunningGateway, *words: str) -> Result:
    words = (*words, "--url", running.api)
    run = partial(CliRunner().invoke, cli, list(words))
    result: Result = await trio.to_thread.run_sync(run)
    return result


async def lines(running: RunningGateway, *words: str) -> list[str]:
    result = await cortex(running, *words)
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


async def test_a_model_from_its_load_to_its_end():
    neuron = FakeNeuron("beast")
    neuron.model_loads = [{"id": "org/m", "in_flight": 2, "tok_s_decode": 31.5}]
    names = {"models": (ENTRY,), "aliases": {"gpt-4": "org/m"}}
    with trio.fail_after(60):
        async with gateway(neuron, **names) as running, running.events() as events:
            assert "org/m unloaded – – –" in await lines(running, "status")
            assert await lines(running, "ps") == ["no model is loaded"]
            assert await lines(running, "load", "gpt-4") == ["gpt-4 is loaded on beast"]
            assert await lines(running, "pin", "gpt-4") == ["org/m is pinned on every node"]
            assert "org/m beast loaded – cuda 0 – 2 pinned" in await lines(running, "ps")
            top = await lines(running, "top", "--once")
            assert top[0] == "1 of 1 nodes healthy, 2 requests in flight, 0 waiting, 32 tok/s"
            assert await lines(running, "unpin", "org/m") == ["org/m is unpinned"]
            assert "org/m beast loaded – cuda 0 – 2 in use" in await lines(running, "ps")
            assert await lines(running, "unload", "org/m") == ["org/m is unloaded from beast"]
            for kind in ("model_loaded", "pinned", "unpinned", "model_unloaded"):
                assert (await events.until(kind))["model"] == "org/m"
            twice = await cortex(running, "unload", "org/m")
            assert twice.exit_code == 1
            assert "loaded on no neuron" in twice.stderr


async def test_a_reload_is_planned_then_done():
    with trio.fail_after(60):
        async with gateway(FakeNeuron("a"), models=(ENTRY,)) as running:
            running.files.catalogue = Catalogue((ENTRY, CatalogueEntry("n")), {"x": "n"})
            running.files.settings(listen="127.0.0.1:9")
            planned = await lines(running, "reload", "--dry-run")
            assert planned == [
                "gateway.listen: 127.0.0.1:0 -> 127.0.0.1:9 (needs a restart)",
                "models added: n",
                "aliases added: x",
            ]
            assert await lines(running, "reload") == planned
            assert await lines(running, "reload") == planned[:1]
            shown = json.loads((await cortex(running, "status", "--json")).stdout)
            assert {model["id"] for model in shown["models"]} == {"org/m", "n", "x"}
