"""Bodies of the Responses API with anything in the wrong place: read or clearly refused, no bug."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import BadRequest, CortexError, NotFound
from cortex.translate.chat import chat_body, tokenize_body
from cortex.translate.responses import read_count, read_response
from cortex.translate.responses_object import response_for
from cortex.wire import json as wire_json

GOLDEN = Path(__file__).parents[1] / "golden" / "responses"
CUSTOM = {"type": "custom", "name": "apply_patch", "format": {"type": "text"}}
EXTRA = {
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "custom", "name": "apply_patch"}],
    },
    "metadata": {"a": "b"},
    "truncation": "auto",
    "top_logprobs": 0,
    "background": False,
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
}


def bodies() -> Iterator[dict[str, Any]]:
    for name in ("codex_tool_turn", "ai_sdk_easy_messages", "two_parallel_calls"):
        body = json.loads((GOLDEN / name / "request.json").read_text())
        yield body
        yield {**body, **EXTRA, "tools": [CUSTOM]}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in *value*."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


PLACES = [(body, path) for body in bodies() for path in places(body)]
SCALARS = [None, True, 0, -1, 0.5, 2**40, "", "x", "message", "function", "data:image/png,x"]
CONTAINERS = [[], ["x"], [[]], {}, [{}], {"type": "x"}, {"type": "message"}, {"type": 5}]
values = st.sampled_from([*SCALARS, *CONTAINERS, {"id": "x"}])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), values)
def test_whatever_stands_anywhere_is_read_or_refused(place, value):
    body, path = place
    changed = copy.deepcopy(body)
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    asked, refusal = read(changed)
    if asked is None:
        assert isinstance(refusal, BadRequest | NotFound)
        assert refusal.param
        return
    wire_json.dumps(chat_body(asked.conversation, "m"))
    wire_json.dumps(tokenize_body(read_count(changed), "m"))
    wire_json.dumps(response_for(asked, "resp_1", 1).shown("in_progress", []))


def read(body: dict[str, Any]) -> tuple[Any, CortexError | None]:
    try:
        return read_response(body), None
    except CortexError as exc:
        return None, exc


def test_the_bodies_are_good_as_they_are():
    for body in bodies():
        asked, refusal = read(body)
        assert refusal is None, refusal
        assert asked.conversation.model
