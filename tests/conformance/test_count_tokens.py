"""AC: counting the tokens of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.checks import ANTHROPIC_TOOL, COUNT, Server, told, user

PROMPTS: dict[str, dict[str, Any]] = {
    "AC01-plain": {},
    "AC01-system": {"system": "Be brief."},
    "AC01-tools": {"tools": [ANTHROPIC_TOOL]},
    "AC01-thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1025},
    "AC01-prefill": {"messages": [user(), {"role": "assistant", "content": "It is"}]},
}


@pytest.mark.parametrize("fields", PROMPTS.values(), ids=PROMPTS.keys())
def test_ac01_a_count_is_what_the_request_will_use(real: Server, fields: dict[str, Any]) -> None:
    usage = real.message(**{"max_tokens": 1, **fields})["usage"]
    assert real.count(**fields) == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_ac02_it_grows_with_what_is_added(real: Server) -> None:
    plain = real.count()
    assert real.count(system="Be brief.") > plain
    assert real.count(tools=[ANTHROPIC_TOOL]) > plain


def test_ac03_ac06_other_fields_do_not_matter(real: Server) -> None:
    assert real.count(max_tokens=10**9, stream=True, temperature=7) == real.count()


@pytest.mark.parametrize("messages", [[], None, "hi"], ids="AC04-{}".format)
def test_ac04_a_prompt_is_needed(scripted: Server, messages: Any) -> None:
    scripted.refused(COUNT, {"model": "m", "messages": messages})


def test_ac05_a_huge_prompt_is_counted_or_refused(real: Server) -> None:
    assert real.count(messages=[user("word and " * 100_000)]) > 100_000


def test_ac07_it_takes_no_slot_and_loads_nothing(scripted: Server) -> None:
    scripted.count()
    paths = [asked.path for asked in scripted.gateway.neuron.requests]
    assert "/tokenize" in paths
    assert not {path for path in paths if path.startswith(("/v1/", "/models/load"))}


def test_ac08_an_unknown_model_is_404(scripted: Server) -> None:
    error = scripted.refused(COUNT, {"model": "nobody", "messages": [user()]}, 404)
    assert (error["type"], error["message"][:13]) == ("not_found_error", "model: nobody")


def test_ac09_it_is_a_post(scripted: Server) -> None:
    response = scripted.client.get(COUNT)
    assert told(response, 405, anthropic=True)["type"] == "invalid_request_error"
    assert response.headers["allow"] == "POST"
