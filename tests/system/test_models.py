"""Models that come on demand: cold loads, aliases, failures, told truthfully."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from fakes.stack import stack

from cortex.config.catalogue import CatalogueEntry

pytestmark = pytest.mark.slow


async def test_a_model_of_the_catalogue_is_loaded_by_its_first_request(tmp_path: Path):
    entries = [
        CatalogueEntry("house/small", source="demo"),
        CatalogueEntry("house/other", source="demo"),
    ]
    async with stack(tmp_path, models=(), catalogue=entries) as it:
        listed = {m["id"]: m for m in (await it.client.get("/v1/models")).json()["data"]}
        assert listed["house/small"]["status"] == "unloaded"
        answers: list[int] = []

        async def ask() -> None:
            answer = await it.chat("hello", model="house/small", max_tokens=3)
            answers.append(answer.status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert answers == [200] * 5
        exposition = (await it.client.get(f"{it.metrics}/metrics")).text
        assert 'cortex_cold_starts_total{model="house/small",node="node-0"} 1.0' in exposition
        both = await it.chat("hello", model="house/other", max_tokens=3)
        assert both.status_code == 200
        loaded = (await it.client.get(f"{it.neurons[0]}/models")).json()
        assert {m["id"]: m["status"] for m in loaded} == {
            "house/small": "loaded",
            "house/other": "loaded",
        }


async def test_an_alias_is_echoed_and_resolved(tmp_path: Path):
    entries = [CatalogueEntry("house/small", source="demo")]
    async with stack(
        tmp_path, models=(), catalogue=entries, aliases={"claude-small": "house/small"}
    ) as it:
        answer = await it.chat("hello", model="claude-small", max_tokens=3)
        assert answer.json()["model"] == "claude-small"
        async with it.stream("hello", model="claude-small", max_tokens=3) as payloads:
            chunks = [payload async for payload in payloads]
        assert all('"model":"claude-small"' in chunk for chunk in chunks[:-1])
        message = await it.client.post(
            "/v1/messages",
            json={
                "model": "claude-small",
                "max_tokens": 3,
                "messages": [{"role": "user", "content": "hello"}],
            },
        )
        assert message.json()["model"] == "claude-small"


async def test_a_load_that_fails_tells_its_cause_and_is_not_tried_at_once_again(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["NobodyKnowsForCausalLM"]}')
    (broken / "tokenizer.json").write_text("{}")
    entries = [CatalogueEntry("house/broken", source=str(broken))]
    async with stack(tmp_path, catalogue=entries) as it:
        first = await it.chat("hello", model="house/broken")
        assert (first.status_code, first.json()["error"]["code"]) == (503, "load_failed")
        assert "retry-after" in first.headers
        again = await it.chat("hello", model="house/broken")
        assert again.status_code == 503
        fine = await it.chat("hello", max_tokens=3)
        assert fine.status_code == 200


async def test_unloading_through_the_fleet_and_loading_again(tmp_path: Path):
    async with stack(tmp_path, catalogue=[CatalogueEntry("cortex/demo")]) as it:
        gone = await it.client.post("/fleet/models/unload", json={"model": "cortex/demo"})
        assert gone.status_code == 200, gone.text
        assert (await it.client.get(f"{it.neurons[0]}/models")).json() == []
        back = await it.client.post("/fleet/models/load", json={"model": "cortex/demo"})
        assert back.status_code == 200, back.text
        assert (await it.chat("hello", max_tokens=3)).status_code == 200


async def test_the_same_conversation_has_the_same_prompt_in_both_dialects(tmp_path: Path):
    async with stack(tmp_path) as it:
        chat = await it.client.post(
            "/v1/chat/completions",
            json={
                "model": "cortex/demo",
                "max_tokens": 1,
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "one"},
                            {"type": "text", "text": "two"},
                        ],
                    },
                ],
            },
        )
        message = await it.client.post(
            "/v1/messages",
            json={
                "model": "cortex/demo",
                "max_tokens": 1,
                "system": "Be brief.",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "one"},
                            {"type": "text", "text": "two"},
                        ],
                    }
                ],
            },
        )
        usage = message.json()["usage"]
        counted = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert chat.json()["usage"]["prompt_tokens"] == counted
